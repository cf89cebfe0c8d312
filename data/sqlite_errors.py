"""SQLite's errors that a person can mend, as sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import Locked, Problem
from data.files import is_disk_full

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

_LOCKED = "Another process is writing to the database - try again in a moment."
_RESTORE = 'stop the server and run "python -m data restore"'
_SENTENCES = {
    "disk is full": "The disk is full, nothing was stored - free some space and try again.",
    "readonly": "The database cannot be written, nothing was stored - check the permissions of {path}.",
    "unable to open": "The database cannot be opened - check that this account may write {path}.",
    "disk i/o": "The disk failed while the database was used - check the disk that holds {path}.",
    "malformed": f"The database {{path}} is damaged - {_RESTORE}.",
    "not a database": f"The file {{path}} is no database - {_RESTORE}.",
}


class Damaged(Problem):
    """What SQLite found is no whole database: a restore mends it."""


@contextmanager
def as_sentences(path: Path) -> Iterator[None]:
    """SQLite's errors that a person can mend, as sentences; all others pass."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise Locked(_LOCKED) from error
        said = str(error).lower()
        if "disk i/o" in said and is_disk_full(path.parent):
            said = "disk is full"  # where SQLite cannot make its files, it says that the disk failed
        for words, sentence in _SENTENCES.items():
            if words in said:
                kind = Damaged if _RESTORE in sentence or words == "disk i/o" else Problem
                raise kind(sentence.format(path=repr(str(path)))) from error
        raise
