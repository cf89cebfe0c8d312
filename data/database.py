"""The one place that opens SQLite: pragmas, one writer, many readers, and the file's health.

A write is `with db.write() as conn:`, one thread of this process at a time, BEGIN IMMEDIATE ... COMMIT: a
read-then-write never meets "database is locked", and what it did is on the disk when the block has ended. A
read is `db.query(...)` on the thread's own connection. pysqlite3's wheels bring SQLite 3.51.3 or newer: older
ones can corrupt a WAL database, and two SQLite libraries on one file lose rows, so nothing else imports one.
"""

import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import sqlite_utils
import uuid_utils

from data.backups import BEFORE_MIGRATION, backup_files, backup_path
from data.errors import Locked, Problem, Refused
from data.files import file_to_be, lock_at, private_file
from data.home import Home
from data.schema import MIGRATIONS, prepare, unknown_migrations
from data.sqlite_errors import Damaged, as_sentences
from data.text import folded

if TYPE_CHECKING:
    import sqlite3
else:
    from pysqlite3 import dbapi2 as sqlite3

BUSY_SECONDS = 5.0
LOCK_SECONDS = 60.0
OLDEST_SQLITE = (3, 51, 3)
PRAGMAS = ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON")

Connection = sqlite3.Connection
Row = sqlite3.Row

_QUEUED = "Others are still writing to the database - try again in a moment."
_MIGRATING = "Another process migrates or restores the database - try again in a minute."
_TOO_OLD = (
    "pysqlite3 was built here with SQLite {}, which can corrupt the database - "
    "build it with SQLite 3.51.3 or newer, or use a machine for which it has a wheel (README.md)."
)


def new_id() -> str:
    """A UUIDv7: ids made later sort later."""
    return str(uuid_utils.uuid7())


class _Reader:
    """A thread's own reading connection; closed when its thread has gone.

    The lock is for the closing: SQLite crashes where one thread closes what another one reads through.
    """

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.lock = threading.RLock()

    def close(self) -> None:
        with self.lock:
            self.conn.close()

    __del__ = close


class Database:
    """One SQLite file in WAL mode, shared by all threads of this process. Made by `open_database`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._writing_thread: int | None = None
        self._local = threading.local()
        self._readers: weakref.WeakSet[_Reader] = weakref.WeakSet()
        self._readers_lock = threading.Lock()
        self.timed: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Around each COMMIT, for whoever wants to know how long it takes."""
        with as_sentences(path):
            self._writer = connect(private_file(path))
            self._writer.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def write(self, *, patience: float | None = None) -> Iterator[Connection]:
        """A transaction that is on the disk when the block ends, and never happened if it raises.

        A write inside a write of the same thread joins it, and is undone alone if it raises. Raises Busy
        where all other writers together leave it no turn within `patience` seconds, or `BUSY_SECONDS`.
        """
        with self._holding_writer(patience), as_sentences(self.path):
            if self._writing_thread is not None:
                with _savepoint(self._writer):
                    yield self._writer
                return
            self._writer.execute("BEGIN IMMEDIATE")
            self._writing_thread = threading.get_ident()
            try:
                yield self._writer
                with self.timed():
                    self._writer.execute("COMMIT")
            finally:
                self._writing_thread = None
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def _holding_writer(self, patience: float | None = None) -> Iterator[None]:
        """The writer is this thread's alone. Time spent queueing for it is taken off SQLite's own timeout."""
        patience, asked_at = BUSY_SECONDS if patience is None else patience, time.monotonic()
        if not self._lock.acquire(timeout=patience):
            raise Locked(_QUEUED)
        try:
            left = max(0.0, patience - (time.monotonic() - asked_at))
            self._writer.execute(f"PRAGMA busy_timeout = {round(1000 * left)}")
            yield
        finally:
            self._lock.release()

    @contextmanager
    def read(self) -> Iterator[None]:
        """All queries of this thread in the block see one moment of the database."""
        with self._reading() as conn:
            if conn.in_transaction:
                yield
                return
            conn.execute("BEGIN")
            try:
                yield
            finally:
                conn.execute("COMMIT")

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        """The rows of a SELECT; inside `write` it sees what that block has written."""
        with as_sentences(self.path), self._reading() as conn:
            return conn.execute(sql, params).fetchall()

    def one(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> Row | None:
        """The first row of a SELECT, or None."""
        return next(iter(self.query(sql, params)), None)

    def empty_log(self, *, patience: float | None = None) -> bool:
        """Moves all that the log holds into the file; False if a reader kept the log.

        It waits `patience` seconds, or `BUSY_SECONDS`, for others who write, and for those who read.
        """
        with self._holding_writer(patience), as_sentences(self.path):
            assert self._writing_thread is None, "a checkpoint inside a write"
            row = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not row[0]

    def vacuum(self) -> None:
        """Rewrites the file without its free pages. The log, where a reader keeps it, is emptied later.

        All other writes wait, 25 s for a file of 850 MB: nothing for while a person looks at a page. Raises
        Problem where the disk or the memory has no room for the log and the copies that this takes.
        """
        with self._holding_writer(), as_sentences(self.path):
            assert self._writing_thread is None, "vacuum inside a write"
            size = self.path.stat().st_size
            if shutil.disk_usage(self.path.parent).free < 3 * size:
                raise Problem("There is no room to rewrite the database - free three times its size.")
            if psutil.virtual_memory().available < 2 * size:  # some builds of SQLite copy in memory
                raise Problem("There is no memory to rewrite the database - free twice its size.")
            self._writer.execute("VACUUM")
            with suppress(Problem):
                self.empty_log()

    def backup(self, target: Path) -> None:
        """A checked copy of this moment at `target`, while others write; `target` is whole or untouched."""
        with file_to_be(target) as partial:
            with as_sentences(self.path), closing(connect(self.path)) as conn:
                conn.execute("VACUUM INTO ?", (str(partial),))
            if damage := damage_of(partial):
                raise Problem(
                    f"The backup of {self.path} is damaged ({damage}) - check the disk and try again."
                )

    def close(self) -> None:
        """Closes every connection; the other threads must be done."""
        with self._lock, self._readers_lock:
            for reader in self._readers:
                reader.close()
            self._writer.close()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """What this thread reads through; nobody closes it meanwhile."""
        if self._writing_thread == threading.get_ident():
            yield self._writer
            return
        reader: _Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = _Reader(connect(self.path))
            reader.conn.execute("PRAGMA query_only = ON")
            self._local.reader = reader
            with self._readers_lock:
                self._readers.add(reader)
        with reader.lock:
            yield reader.conn


def connect(path: Path, busy_seconds: float = BUSY_SECONDS, pragmas: Sequence[str] = PRAGMAS) -> Connection:
    """A connection in autocommit mode with this project's pragmas, and `folded` (text.py) for its queries."""
    conn = sqlite3.connect(str(path), timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    conn.row_factory = Row
    conn.create_function("folded", 1, folded, deterministic=True)
    for pragma in pragmas:
        conn.execute(f"PRAGMA {pragma}")
    return conn


@contextmanager
def _savepoint(conn: Connection) -> Iterator[None]:
    conn.execute("SAVEPOINT inner_write")
    try:
        yield
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK TO inner_write")
            conn.execute("RELEASE inner_write")
        raise
    conn.execute("RELEASE inner_write")


def damage_of(path: Path, check: str = "integrity_check") -> str | None:
    """What is wrong with the database file at `path`, in SQLite's words; None if it is whole.

    `quick_check` does not compare the indexes with their tables. Problem where the file cannot be looked at.
    """
    try:
        with as_sentences(path), closing(connect(path)) as conn:
            row = conn.execute(f"PRAGMA {check}(1)").fetchone()
    except (Damaged, sqlite3.DatabaseError) as error:
        return str(error.__cause__ or error)
    return None if row[0] == "ok" else str(row[0])


def _is_whole(path: Path) -> bool:
    with suppress(Problem):
        return damage_of(path) is None
    return False


def lock_of(home: Home) -> AbstractContextManager[None]:
    """Held while the database is migrated or replaced; one holder among all processes, Busy for others."""
    return lock_at(home.root / f"{home.database.name}.lock", LOCK_SECONDS, _MIGRATING)


def open_database(home: Home, *, check: bool = False) -> Database:
    """The home's database, migrated to this code's schema; a used one is backed up before a migration.

    check: for whoever stays: the whole file is read, seconds for each GB, and a damaged one is Refused,
        naming the newest good backup. Without it damage is told where something meets it.

    Refuses a database of newer code, and a SQLite too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise Refused(_TOO_OLD.format(sqlite3.sqlite_version))
    with lock_of(home):
        if check:
            _refuse_damaged(home)
        db = Database(home.database)
        try:
            with as_sentences(home.database):
                _migrate(db, home)
        except BaseException:
            db.close()
            raise
        return db


def _refuse_damaged(home: Home) -> None:
    path = home.database
    if not (path.exists() and path.stat().st_size and (damage := damage_of(path, "quick_check"))):
        return
    good = next(filter(_is_whole, backup_files(home)), None)
    remedy = f'run "python -m data restore {good}"' if good else "there is no good backup to restore"
    raise Refused(f"The database {str(path)!r} is damaged ({damage}) - {remedy}.")


def _migrate(db: Database, home: Home) -> None:
    tables = sqlite_utils.Database(db._writer, execute_plugins=False)
    unknown = unknown_migrations(tables)
    if unknown:
        raise Refused(
            f"The database {str(home.database)!r} is newer than this program ({unknown[-1]}) - "
            "install the newer version, or restore a backup from before it."
        )
    if not MIGRATIONS.pending(tables):
        return
    if MIGRATIONS.applied(tables):
        db.backup(backup_path(home, time.time(), BEFORE_MIGRATION))
    prepare(tables)
