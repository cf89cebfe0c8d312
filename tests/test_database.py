"""database.py: what is acknowledged is stored, writers never meet a lock, damage is a sentence."""

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import audit, database, people, recovery
from data.backups import backup_files, backup_path, made_at, newest_at, rotate
from data.database import Database, connect, damage_of, lock_of, new_id, open_database
from data.errors import Busy, NotFound, Problem, Refused
from data.home import Home
from data.recovery import back_up_daily, backup_problem, make_backup, restore


def test_ids_made_later_sort_later() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_the_pragmas_that_keep_acknowledged_rows_are_on(db: Database) -> None:
    with db.write() as conn:
        found = {
            name: conn.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "secure_delete": 1,
    }


def test_a_write_that_raises_leaves_nothing(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.write():
        people.add(db, "ada")
        raise ZeroDivisionError
    assert people.list_all(db) == []


def test_an_inner_write_that_raises_is_undone_alone(db: Database) -> None:
    with db.write():
        people.add(db, "ada")
        with pytest.raises(ZeroDivisionError), db.write():
            people.add(db, "bob")
            raise ZeroDivisionError
    assert [person.name for person in people.list_all(db)] == ["ada"]


def test_a_write_reads_its_own_rows_and_other_threads_do_not(db: Database) -> None:
    seen: list[int] = []
    with db.write():
        people.add(db, "ada")
        other = threading.Thread(target=lambda: seen.append(people.count(db)))
        other.start()
        other.join()
        assert people.count(db) == 1
    assert seen == [0]


def test_a_reading_block_sees_one_moment(db: Database) -> None:
    with db.read():
        assert people.count(db) == 0
        writer = threading.Thread(target=lambda: people.add(db, "ada"))
        writer.start()
        writer.join()
        assert people.count(db) == 0
    assert people.count(db) == 1


COUNT_UP = """
import sys, threading
from pathlib import Path
from data.database import open_database
from data.home import open_home

db = open_database(open_home(Path(sys.argv[1])))

def count_up():
    for _ in range(25):
        with db.write() as conn:
            value = db.one("SELECT min_rankings FROM schedule")["min_rankings"]
            conn.execute("UPDATE schedule SET min_rankings = ?", (value + 1,))

threads = [threading.Thread(target=count_up) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
db.close()
"""


def test_two_processes_of_four_threads_read_and_write_without_losing_one(db: Database, home: Home) -> None:
    with db.write() as conn:
        conn.execute("INSERT INTO schedule VALUES (1, '', '', 0, 0, 0)")
    command = [sys.executable, "-W", "error", "-c", COUNT_UP, str(home.root)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == ["", ""]
    assert db.query("SELECT min_rankings FROM schedule")[0][0] == 200


def test_a_lock_held_elsewhere_is_a_busy_sentence(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Database(home.database)
    monkeypatch.setattr("data.database.BUSY_SECONDS", 0.0)
    with other.write(), pytest.raises(Busy, match="Another process"), db.write():
        pass
    with db.write():
        people.add(db, "ada")
    assert people.count(other) == 1
    other.close()


def test_who_stands_behind_a_slow_writer_is_refused_too(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It waited for ever, and in a queue each waited anew when those before had given up.
    monkeypatch.setattr("data.database.BUSY_SECONDS", 0.05)
    refused: list[str] = []

    def write() -> None:
        try:
            people.add(db, "bob")
        except Busy as problem:
            refused.append(str(problem))

    queue = [threading.Thread(target=write, daemon=True) for _ in range(6)]
    with db.write():
        for thread in queue:
            thread.start()
        for thread in queue:
            thread.join(20)
        said = list(refused)
        people.add(db, "ada")
    assert said == ["Others are still writing to the database - try again in a moment."] * 6
    assert [person.name for person in people.list_all(db)] == ["ada"]


def test_what_the_queue_took_is_not_waited_for_once_more(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 13.0, 20.0, 20.0])  # asked, in turn; asked, in turn
    monkeypatch.setattr("data.database.time", SimpleNamespace(monotonic=lambda: next(clock)))
    for left in (2000, 5000):
        with db.write() as conn:
            assert conn.execute("PRAGMA busy_timeout").fetchone()[0] == left


def test_a_full_disk_is_a_sentence_and_the_next_write_works(db: Database) -> None:
    with db.write() as conn:
        pages = conn.execute("PRAGMA page_count").fetchone()[0]
        conn.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Problem, match="disk is full"), db.write():
        audit.record(db, "ada", "write much", {"text": "x" * 100_000})
    assert audit.entries(db) == []
    people.add(db, "ada")


def test_a_database_of_newer_code_is_refused(db: Database, home: Home) -> None:
    with db.write() as conn:
        conn.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('nightschool', 'm999_x', '')"
        )
    with pytest.raises(Refused, match=r"newer than this program \(m999_x\) - "):
        open_database(home)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 8] = b"\xa5" * (4096 * 7)
    path.write_bytes(content)


def test_a_damaged_database_is_refused_and_the_newest_good_backup_named(db: Database, home: Home) -> None:
    good = backup_path(home, 1_000_000)
    db.backup(good)
    newer = backup_path(home, 2_000_000)
    db.backup(newer)
    damage(newer)
    db.vacuum()
    db.close()
    damage(home.database)
    with pytest.raises(Refused, match="is damaged") as caught:
        open_database(home, check=True)
    assert str(good) in str(caught.value)


def test_a_database_is_not_read_from_end_to_end_for_a_command_that_looks_something_up(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(database, "damage_of", lambda path, check: read.append(path))
    open_database(home).close()
    assert read == []
    open_database(home, check=True).close()
    assert read == [home.database]


def test_a_backup_is_whole_and_holds_the_rows(db: Database, home: Home) -> None:
    people.add(db, "ada")
    made = make_backup(db, home)
    assert damage_of(made) is None
    copy = Database(made)
    assert people.by_name(copy, "ada")
    copy.close()
    assert list(home.backups.glob("*.part")) == []


def test_database_its_log_and_copies_of_it_are_their_owners_alone(home: Home, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        db = open_database(home)
        people.add(db, "ada")
        made = make_backup(db, home)
        elsewhere = tmp_path / "copy.db"
        elsewhere.touch(0o644)
        db.backup(elsewhere)
        beside = [home.root / f"nightschool.db{suffix}" for suffix in ("", "-wal", "-shm")]
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (*beside, made, elsewhere)]
        db.close()
        aside = restore(home, made)
    finally:
        os.umask(before)
    assert modes == [0o600] * 5 and aside is not None
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.database, aside)] == [0o600] * 2


def test_rotation_keeps_hours_days_weeks_and_what_somebody_named(home: Home) -> None:
    for hour in range(24 * 60):
        backup_path(home, 1_700_000_000 + hour * 3600).touch()
    labelled = home.backups / "20200913T122640Z-before-the-move.db"
    labelled.touch()
    rotate(home, time.time())
    left = backup_files(home)
    # 24 hours reach into 2 of the 7 days, and the days into 2 of the 4 weeks
    assert len(left) == 24 + 5 + 2 + 1
    assert labelled in left
    assert backup_path(home, 1_700_000_000 + 1439 * 3600) in left


def test_a_backup_under_a_name_of_somebodys_own_is_as_old_as_its_file(home: Home) -> None:
    now = 1_700_000_000
    stamped = [backup_path(home, now - 86400), backup_path(home, now, "before-migration")]
    named = {home.backups / "keep-before-upgrade.db": now - 60 * 86400, home.backups / "a copy.db": now + 60}
    for path in (*stamped, *named):
        path.touch()
    for path, changed in named.items():
        os.utime(path, (changed, changed))
    gone = home.backups / "link.db"
    gone.symlink_to(home.root / "nowhere")
    os.utime(gone, (now - 1, now - 1), follow_symlinks=False)
    names = ["a copy.db", stamped[1].name, "link.db", stamped[0].name, "keep-before-upgrade.db"]
    assert [path.name for path in backup_files(home)] == names


def test_daily_backups_are_kept_for_a_week_and_then_weekly(home: Home) -> None:
    for day in range(60):
        backup_path(home, 1_700_000_000 + day * 86400).touch()
    rotate(home, time.time())
    days = [(made_at(path) or 0.0) // 86400 - 1_700_000_000 // 86400 for path in backup_files(home)]
    assert days == [59, 58, 57, 56, 55, 54, 53, 50, 43]  # and not 24 of them


@pytest.mark.parametrize("label", ["before-migration", "replaced"])
def test_a_copy_that_a_migration_or_a_restore_made_goes_after_four_weeks(home: Home, label: str) -> None:
    now = 1_700_000_000
    old, new = (backup_path(home, now - days * 86400, label) for days in (29, 27))
    for path in (old, log := old.with_name(f"{old.name}-wal"), new, newest := backup_path(home, now)):
        path.touch()
    assert set(rotate(home, time.time())) == {old, log}
    assert backup_files(home) in ([newest, new], [new, newest])


def test_a_backup_of_a_clock_that_was_ahead_lets_no_copy_go(home: Home) -> None:
    now = 1_700_000_000
    copies = [backup_path(home, now - 86400, label) for label in ("before-migration", "replaced")]
    for path in (*copies, backup_path(home, now), backup_path(home, now + 40 * 86400)):
        path.touch()
    assert rotate(home, now) == []


def test_a_half_written_backup_goes_once_it_is_a_day_old(home: Home) -> None:
    now = 1_700_000_000.0
    old, new = (backup_path(home, now - age).with_suffix(".db.part") for age in (86400, 60))
    for path in (old, new, backup_path(home, now)):
        path.touch()
    rotate(home, time.time())
    assert not old.exists() and new.exists()


def test_a_daily_backup_is_made_once_a_day(db: Database, home: Home) -> None:
    now = time.time()
    backup_path(home, now - 1e6, "before-migration").touch()  # none of the day's
    backup_path(home, now + 1e6).touch()  # a clock that was wrong
    made = back_up_daily(db, home, now)
    assert made and damage_of(made) is None and newest_at(home, now) == int(now)
    assert back_up_daily(db, home, now + 3600) is None
    assert back_up_daily(db, home, now + 86400) is not None


def test_a_daily_backup_leaves_room_and_says_why_there_is_none(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    almost_full = SimpleNamespace(total=1e12, used=0.94e12, free=0.05e12 + 1000)
    with monkeypatch.context() as disk:
        disk.setattr(recovery.shutil, "disk_usage", lambda path: almost_full)
        for _ in range(2):
            with pytest.raises(Problem, match="no room for a backup"):
                back_up_daily(db, home, now)
    assert list(home.backups.iterdir()) == []
    assert "no room for a backup" in (backup_problem(db, home, now) or "")
    assert [entry.action for entry in audit.entries(db)] == ["backup_failed"]  # once, not each hour
    back_up_daily(db, home, now)
    assert backup_problem(db, home, now) is None


def test_a_restore_brings_the_rows_back_and_keeps_what_was_there(db: Database, home: Home) -> None:
    people.add(db, "ada")
    made = make_backup(db, home)
    people.add(db, "bob")
    with pytest.raises(Busy, match="in use - stop the server"):
        restore(home, made)
    db.close()
    aside = restore(home, made)
    again = open_database(home)
    assert [person.name for person in people.list_all(again)] == ["ada"]
    again.close()
    assert aside is not None
    assert damage_of(aside) is None


class Killed(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("step", ["shutil.copyfile", "os.link", "force_to_disk", "replace_durably"])
def test_a_restore_that_is_killed_leaves_the_database_that_was_there(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = make_backup(db, home)
    people.add(db, "ada")
    db.close()

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(f"data.recovery.{step}", killed)
        with pytest.raises(Killed):
            restore(home, made)
    again = open_database(home)
    assert [person.name for person in people.list_all(again)] == ["ada"]
    again.close()
    with monkeypatch.context() as patched:  # a second one would have the name of the first
        patched.setattr("data.recovery.time", SimpleNamespace(time=lambda: 1e9))
        assert restore(home, made) == backup_path(home, 1e9, "replaced")
    again = open_database(home)
    assert people.list_all(again) == []
    again.close()


def test_a_file_is_not_rewritten_in_memory_that_is_not_there(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = home.database.stat().st_size
    for free, is_enough in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(available=free))
        with contextlib.nullcontext() if is_enough else pytest.raises(Problem, match="no memory to rewrite"):
            db.vacuum()


def test_asking_whether_a_database_is_in_use_leaves_it_as_it_is(db: Database, home: Home) -> None:
    people.add(db, "ada")
    assert recovery.is_in_use(home.database)
    db.close()
    before = home.database.read_bytes()
    assert not recovery.is_in_use(home.database) and home.database.read_bytes() == before


def test_a_damaged_database_that_a_server_still_has_open_is_in_use(db: Database, home: Home) -> None:
    # Not one page of it is in the log, and the schema is no schema.
    db.vacuum()
    content = bytearray(home.database.read_bytes())
    content[100:4096] = b"\xa5" * 3996
    home.database.write_bytes(content)
    assert recovery.is_in_use(home.database)
    db.close()
    assert not recovery.is_in_use(home.database)


def test_a_log_that_could_not_be_folded_in_is_kept_with_the_database(
    db: Database, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_backup(db, home)
    people.add(db, "ada")
    names = [home.database.name, f"{home.database.name}-wal"]
    for name in names:
        shutil.copy(home.root / name, tmp_path / name)
    db.close()
    for name in names:  # as a crash leaves them
        shutil.copy(tmp_path / name, home.root / name)
    monkeypatch.setattr(recovery, "is_in_use", lambda path: False)  # it could not: the disk was full
    aside = restore(home, made)
    assert aside is not None
    kept, now = Database(aside), open_database(home)
    assert people.by_name(kept, "ada") and people.list_all(now) == []
    kept.close()
    now.close()


def test_a_volume_without_hard_links_keeps_a_copy(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_backup(db, home)
    people.add(db, "ada")
    db.close()

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("data.recovery.os.link", refuse)
    aside = restore(home, made)
    assert aside is not None
    kept = Database(aside)
    assert people.by_name(kept, "ada")
    kept.close()


def test_a_damaged_or_missing_backup_is_not_restored(db: Database, home: Home) -> None:
    made = make_backup(db, home)
    damage(made)
    with pytest.raises(Refused, match="choose another"):
        restore(home, made)
    with pytest.raises(NotFound, match="no backup"):
        restore(home, home.backups / "none.db")


@pytest.mark.parametrize("content", ["", "CREATE TABLE notes (x)"])
def test_what_is_no_database_of_ours_is_not_restored(db: Database, home: Home, content: str) -> None:
    other = home.backups / "other.db"
    if content:
        conn = connect(other)
        conn.execute(content)
        conn.close()
    else:
        other.touch()
    db.close()
    with pytest.raises(Refused, match="nothing of Night School - choose another"):
        restore(home, other)


def test_a_restore_without_room_says_so_and_leaves_nothing(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_backup(db, home)
    db.close()

    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data.recovery.shutil.copyfile", full)
    with pytest.raises(Problem, match=r"\(No space left on device\), nothing was restored - make room"):
        restore(home, made)
    assert list(home.root.glob("*.part")) == []


def test_a_restore_waits_for_who_migrates_and_says_so(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_backup(db, home)
    db.close()
    monkeypatch.setattr("data.database.LOCK_SECONDS", 0.1)
    with lock_of(home), pytest.raises(Busy, match="migrates or restores the database"):
        restore(home, made)


def test_what_a_restore_put_aside_is_no_newest_backup(db: Database, home: Home) -> None:
    made = make_backup(db, home)
    db.close()
    aside = restore(home, made)
    assert backup_files(home) == [made, aside]


def _read_until(database: Database, started: threading.Event, stop: threading.Event) -> None:
    with contextlib.suppress(Exception):  # "closed" is what a reader hears, and the end of it
        while not stop.is_set():
            database.query("SELECT * FROM sqlite_master")
            started.set()


def test_closing_while_other_threads_read_is_safe(home: Home) -> None:
    # It crashed the process when close() took a connection from under a thread that was reading.
    for _ in range(20):
        database = open_database(home)
        stop, started = threading.Event(), threading.Event()

        threads = [threading.Thread(target=_read_until, args=(database, started, stop)) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert started.wait(10)
        database.close()
        stop.set()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_a_sqlite_that_can_corrupt_the_file_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip builds where the index has no wheel of pysqlite3 carries the machine's own SQLite."""
    monkeypatch.setattr("data.database.sqlite3.sqlite_version_info", (3, 51, 2))
    with pytest.raises(Refused, match=r"built here with SQLite .* - build it with SQLite 3\.51\.3"):
        open_database(home)
    assert not home.database.exists()
