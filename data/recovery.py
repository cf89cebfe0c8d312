"""Making a backup of the whole memory, by hand or each day, and going back to one.

Why a day's backup failed is a row of the audit, for the operator's page: `backup_problem`.
"""

import logging
import os
import shutil
import time
from contextlib import closing, suppress
from pathlib import Path

from data import audit
from data.backups import REPLACED, backup_path, newest_at, rotate
from data.database import Database, connect, damage_of, lock_of
from data.errors import Busy, NotFound, Problem, Refused
from data.files import force_to_disk, private_file, replace_durably
from data.home import Home
from data.schema import is_ours
from data.sqlite_errors import Damaged, as_sentences

log = logging.getLogger(__name__)

DAILY_SECONDS = 23 * 3600.0
"""A backup older than this is due to be followed; looked at each hour, that makes one a day."""
FAILED = "backup_failed"
_LEAST_FREE = 0.05
"""The share of the disk that a daily backup leaves free: below it the server takes no more chats."""


def make_backup(db: Database, home: Home, now: float | None = None) -> Path:
    """A checked copy in the home's backups; old ones are rotated out, and named in the log."""
    now = time.time() if now is None else now
    target = backup_path(home, now)
    db.backup(target)
    for gone in rotate(home, now):
        log.info("The backup %s is rotated out.", gone.name)
    return target


def back_up_daily(db: Database, home: Home, now: float) -> Path | None:
    """A backup where the newest is about a day old, else None. A failure is written down, then raised.

    Problem where the disk would be as good as full afterwards.
    """
    if now - (newest_at(home, now) or 0.0) < DAILY_SECONDS:
        return None
    try:
        _check_room(home)
        return make_backup(db, home, now)
    except Exception as error:
        problem = str(error) or repr(error)
        with suppress(Problem):  # a full disk takes no row either; the page sees how old the newest one is
            if backup_problem(db, home, now) != problem:
                audit.record(db, audit.TRAINER, FAILED, {"problem": problem})
        raise


def backup_problem(db: Database, home: Home, now: float) -> str | None:
    """Why there is no backup of the last day, where one was tried in vain."""
    newest = newest_at(home, now) or 0.0
    if now - newest < DAILY_SECONDS:
        return None
    last = audit.newest(db, FAILED)
    return str(last.detail["problem"]) if last and last.at > newest else None


def _check_room(home: Home) -> None:
    log = _beside(home.database, "-wal")
    size = home.database.stat().st_size + (log.stat().st_size if log.exists() else 0)
    disk = shutil.disk_usage(home.backups)
    if disk.free < 2 * size + _LEAST_FREE * disk.total:
        raise Problem(
            f"There is no room for a backup in {str(home.backups)!r} beside a database of "
            f"{size / 1e6:.0f} MB - free some space, or move old backups elsewhere."
        )


def restore(home: Home, backup: Path) -> Path | None:
    """Puts a backup in the database's place; what was there is kept aside and its path returned.

    Whenever it is killed, the old database or the new one is there, whole. Refused while a server or a
    trainer has the database open, and where the backup itself is damaged.
    """
    if not backup.is_file():
        raise NotFound(f"There is no backup {str(backup)!r} - look into {str(home.backups)!r}.")
    if damage := damage_of(backup):
        raise Refused(f"The backup {str(backup)!r} is damaged ({damage}) - choose another.")
    with closing(connect(backup)) as conn:
        is_one_of_ours = is_ours(conn)
    if not is_one_of_ours:
        raise Refused(f"The file {str(backup)!r} holds nothing of Night School - choose another.")
    with lock_of(home):
        if is_in_use(home.database):
            raise Busy("The database is in use - stop the server and the trainer, then restore.")
        partial = home.root / "restored.part"
        try:
            partial.unlink(missing_ok=True)  # of a restore that was killed, perhaps another account's
            shutil.copyfile(backup, private_file(partial))
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise Problem(
                f"The backup cannot be copied into {str(home.root)!r} ({error.strerror}), nothing was "
                "restored - make room there, and restore again."
            ) from error
        aside = _keep(home) if home.database.exists() else None
        for suffix in ("-wal", "-shm"):  # SQLite would play an old log into the new database
            _beside(home.database, suffix).unlink(missing_ok=True)
        replace_durably(partial, home.database)
    return aside


def _keep(home: Home) -> Path:
    """A second name, among the backups, for the database and for a log that SQLite could not fold into it."""
    aside = backup_path(home, time.time(), REPLACED)
    for suffix in ("", "-wal"):
        if _beside(home.database, suffix).exists():
            _also_at(_beside(home.database, suffix), _beside(aside, suffix))
    force_to_disk(home.backups)
    return aside


def _also_at(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except FileExistsError:
        raise Busy(f"{str(name)!r} was made this very second - restore again.") from None
    except OSError:  # another volume, or one without hard links
        shutil.copyfile(path, private_file(name))
        force_to_disk(name)


def _beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def is_in_use(path: Path) -> bool:
    """Whether any connection of any process has the file open: in WAL mode each holds a lock.

    Changes nothing, but like any last connection it folds a log that a crash left behind into the file.
    Problem where this account may not open the file, and so cannot tell.
    """
    if not path.exists():
        return False
    pragmas = ("locking_mode = EXCLUSIVE",)  # others would read the schema
    try:
        with as_sentences(path), closing(connect(path, 0.2, pragmas)) as conn:
            conn.execute("BEGIN EXCLUSIVE")
    except Busy:
        return True
    except Damaged:  # which is why somebody restores
        return False
    return False
