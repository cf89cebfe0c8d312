"""Files of the home that this account may not open: sentences say so, and root makes none for others."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pysqlite3 import dbapi2 as sqlite3

from data import people
from data.database import damage_of, lock_of, open_database
from data.errors import Problem
from data.home import Home, open_home
from data.recovery import is_in_use, make_backup, restore
from data.sqlite_errors import Damaged, as_sentences

OWNER = 10001
OF_ANOTHER = "The database cannot be opened - check that this account may write '.*'"
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@contextmanager
def as_account(number: int) -> Iterator[None]:
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def theirs() -> Iterator[Home]:
    """The used home of an account other than root's, with a backup; outside root's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, OWNER, OWNER)
        with as_account(OWNER):
            home = open_home(Path(folder, "var"))
            db = open_database(home)
            people.add(db, "ada")
            make_backup(db, home)
            db.close()
        yield home


@only_root
@pytest.mark.parametrize("linked", [True, False])
def test_what_root_restores_is_for_the_account_that_runs_the_server(
    theirs: Home, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    if not linked:  # a volume without hard links
        monkeypatch.setattr("data.recovery.os.link", refuse)
    (theirs.root / "restored.part").touch()  # of a restore that was killed
    aside = restore(theirs, next(theirs.backups.glob("*.db")))
    assert aside is not None
    assert {path.stat().st_uid for path in (theirs.database, aside)} == {OWNER}
    with as_account(OWNER):
        db = open_database(theirs)
        assert people.by_name(db, "ada")
        db.close()


@only_root
def test_folders_that_root_makes_are_for_the_owner_of_the_home(theirs: Home) -> None:
    for folder in (theirs.runs, theirs.adapters):
        folder.rmdir()
    open_home(theirs.root)
    assert {folder.stat().st_uid for folder in (theirs.runs, theirs.adapters)} == {OWNER}


def test_a_database_that_the_disk_no_longer_reads_is_one_to_restore(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="The disk failed while"), as_sentences(tmp_path):
        raise sqlite3.OperationalError("disk I/O error")


def test_a_disk_that_is_full_has_damaged_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: size._replace(free=4096))
    with pytest.raises(Problem, match="The disk is full") as raised, as_sentences(tmp_path / "x.db"):
        raise sqlite3.OperationalError("disk I/O error")
    assert not isinstance(raised.value, Damaged)


@only_root
def test_a_database_and_a_lock_that_root_makes_are_for_the_owner_of_the_home(theirs: Home) -> None:
    theirs.database.unlink()
    lock = theirs.root / "nightschool.db.lock"
    lock.unlink()
    open_database(theirs).close()
    assert {path.stat().st_uid for path in (theirs.database, lock)} == {OWNER}
    with as_account(OWNER):
        open_database(theirs).close()


@only_root
def test_a_database_of_another_account_is_not_called_damaged(theirs: Home) -> None:
    (backup,) = theirs.backups.glob("*.db")
    os.chown(theirs.database, 0, 0)
    with as_account(OWNER):
        with pytest.raises(Problem, match=OF_ANOTHER):
            open_database(theirs)
        with pytest.raises(Problem, match=OF_ANOTHER):  # it may be in use
            restore(theirs, backup)
    os.chown(backup, 0, 0)
    with as_account(OWNER), pytest.raises(Problem, match=OF_ANOTHER):
        restore(theirs, backup)


@only_root
def test_a_lock_of_another_account_is_a_sentence(theirs: Home) -> None:
    os.chown(theirs.root / "nightschool.db.lock", 0, 0)
    with (
        as_account(OWNER),
        pytest.raises(Problem, match=r"db.lock' cannot be locked \(Permission denied\) - check that this"),
    ):
        open_database(theirs)


def test_what_no_account_can_open_is_a_sentence_too(home: Home) -> None:
    home.database.mkdir()
    for look in (damage_of, is_in_use):
        with pytest.raises(Problem, match=OF_ANOTHER):
            look(home.database)
    with pytest.raises(Problem, match=OF_ANOTHER):
        open_database(home)


def test_what_cannot_be_locked_is_a_sentence_too(home: Home) -> None:
    (home.root / "nightschool.db.lock").mkdir()
    with pytest.raises(Problem, match=r"cannot be locked \(Is a directory\) - "), lock_of(home):
        raise AssertionError("It was not locked.")


def test_a_backup_that_cannot_be_opened_is_passed_over_for_a_good_one(home: Home) -> None:
    db = open_database(home)
    good = make_backup(db, home, 1e9)
    db.close()
    (home.backups / "20300101T000000Z.db").mkdir()
    home.database.write_bytes(b"no database" * 1000)
    with pytest.raises(Problem, match=rf'is damaged \(.*\) - run "python -m data restore {good}"'):
        open_database(home, check=True)
