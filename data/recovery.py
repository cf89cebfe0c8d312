"""Making a backup of the whole memory and going back to one."""

import shutil
import time
from pathlib import Path

from data.backups import backup_path, rotate
from data.database import Database, damage_of, is_in_use, lock_of
from data.errors import Busy, NotFound, Refused
from data.files import replace_durably
from data.home import Home


def make_backup(db: Database, home: Home) -> Path:
    """A checked copy in the home's backups; old ones are rotated out."""
    target = backup_path(home, time.time())
    db.backup(target)
    rotate(home)
    return target


def restore(home: Home, backup: Path) -> Path | None:
    """Puts a backup in the database's place; what was there is kept aside and its path returned.

    Refused while a server or a trainer has the database open, and where the backup itself is damaged.
    """
    if not backup.is_file():
        raise NotFound(f"There is no backup {str(backup)!r} - look into {str(home.backups)!r}.")
    if damage := damage_of(backup):
        raise Refused(f"The backup {str(backup)!r} is damaged ({damage}) - choose another.")
    with lock_of(home):
        if is_in_use(home.database):
            raise Busy("The database is in use - stop the server and the trainer, then restore.")
        partial = home.root / "restored.part"
        shutil.copyfile(backup, partial)
        aside = None
        if home.database.exists():
            aside = backup_path(home, time.time(), "replaced")
            home.database.replace(aside)
        for suffix in ("-wal", "-shm"):
            home.database.with_name(home.database.name + suffix).unlink(missing_ok=True)
        replace_durably(partial, home.database)
    return aside
