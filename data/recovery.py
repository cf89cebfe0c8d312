"""Making a backup of the whole memory and going back to one."""

import os
import shutil
import time
from contextlib import closing
from pathlib import Path

from data.backups import REPLACED, backup_path, rotate
from data.database import Database, as_sentences, connect, damage_of, lock_of
from data.errors import Busy, NotFound, Problem, Refused
from data.files import force_to_disk, replace_durably
from data.home import Home
from data.schema import is_ours


def make_backup(db: Database, home: Home) -> Path:
    """A checked copy in the home's backups; old ones are rotated out."""
    target = backup_path(home, time.time())
    db.backup(target)
    rotate(home)
    return target


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
            shutil.copyfile(backup, partial)
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
        shutil.copyfile(path, name)
        force_to_disk(name)


def _beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def is_in_use(path: Path) -> bool:
    """Whether any connection of any process has the file open: in WAL mode each holds a lock.

    Nothing is changed; but like any last connection this one folds a log that a crash left into the file.
    """
    if not path.exists():
        return False
    conn = connect(path, 0.2, pragmas=("locking_mode = EXCLUSIVE",))  # the others read a damaged schema
    try:
        with as_sentences(path):
            conn.execute("BEGIN EXCLUSIVE")
    except Busy:
        return True
    except Problem:  # damaged, which is why somebody restores
        return False
    finally:
        conn.close()
    return False
