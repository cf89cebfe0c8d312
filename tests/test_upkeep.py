"""Upkeep: backups are made beside the watcher's looks, once a day, and what fails is tried again."""

import threading

import pytest

from data import audit
from data.backups import backup_files
from data.database import Database
from data.forgetting import SCRUBBED, forget, scrub
from data.home import Home
from data.recovery import FAILED, backup_problem
from tests.operating import end_run, start_run
from tests.stories import somebody
from trainer import upkeep
from trainer.upkeep import EVERY_SECONDS, Upkeep

NOON = 1_795_000_000.0


def finish(keeping: Upkeep) -> None:
    """Until what is under way is done, however slow the machine."""
    assert keeping._thread is not None
    keeping._thread.join(60)
    keeping.close()


def test_the_first_look_backs_up_and_the_next_ones_wait_a_day(db: Database, home: Home) -> None:
    keeping = Upkeep(home, db)
    for hours in (0, 1, 2, 25):
        keeping.look(NOON + hours * EVERY_SECONDS)
        finish(keeping)
    assert len(backup_files(home)) == 2


def test_a_look_waits_for_nothing_and_begins_nothing_twice(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, begun = threading.Event(), []

    def slow(db: Database, home: Home, now: float) -> None:
        begun.append(now)
        may_end.wait(30)

    monkeypatch.setattr(upkeep, "back_up_daily", slow)
    keeping = Upkeep(home, db)
    for hours in range(3):
        keeping.look(NOON + hours * EVERY_SECONDS)  # would hang where it waited
    may_end.set()
    finish(keeping)
    assert begun == [NOON]
    keeping.look(NOON + 3 * EVERY_SECONDS)
    finish(keeping)
    assert len(begun) == 2


def test_old_runs_are_pruned_even_where_the_backup_failed(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "KEEP_RUNS", 1)
    home.backups.rmdir()
    home.backups.write_text("in the way")
    for key in ("manual-1", "manual-2"):
        run = start_run(db, key)
        (home.runs / run.id).mkdir()
        (home.runs / run.id / "snapshot.jsonl").write_text("words")
        end_run(db, run, "failed")
    keeping = Upkeep(home, db)
    keeping.look(NOON)
    finish(keeping)
    assert [path.parent.name for path in home.runs.glob("*/snapshot.jsonl")] == [run.id]


def test_who_was_forgotten_leaves_no_trace_in_the_file_within_the_hour(db: Database, home: Home) -> None:
    forget(db, home, somebody(db))
    keeping = Upkeep(home, db)
    keeping.look(NOON)
    finish(keeping)
    assert audit.newest(db, SCRUBBED) and not scrub(db)


def test_a_failure_is_logged_told_and_tried_again_in_an_hour(
    db: Database, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.backups.rmdir()
    home.backups.write_text("in the way")
    keeping = Upkeep(home, db)
    keeping.look(NOON)
    keeping.look(NOON + 5)
    finish(keeping)
    assert [record.message for record in caplog.records] == [
        "The daily backup failed; trying again in an hour."
    ]
    assert audit.entries(db)[0].action == FAILED
    home.backups.unlink()
    home.backups.mkdir()
    keeping.look(NOON + EVERY_SECONDS)
    finish(keeping)
    assert len(backup_files(home)) == 1 and backup_problem(db, home, NOON + EVERY_SECONDS) is None
