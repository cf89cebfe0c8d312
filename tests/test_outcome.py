"""How a run ends early: its row says why, the error goes on, and neither waits for nothing nor gives up."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import ModuleType
from typing import Any

import pytest

from data import runs
from data.database import Connection, Database, connect
from data.errors import Locked, Problem, Refused
from data.home import Home
from tests.operating import start_run
from trainer import outcome
from trainer.outcome import finish, recorded
from trainer.progress import Cancelled
from trainer.reasons import HELD_UP, SHUT_DOWN, ShutDown
from trainer.team import Deserted, Team
from trainer.watch import take_up


class TooLittle(Problem):
    """There is not enough."""


def hold(other: Connection, seconds: float = 3.0) -> None:
    """This connection writes, and keeps all others from it for so long."""
    other.execute("BEGIN IMMEDIATE")
    Timer(seconds, other.execute, ("ROLLBACK",)).start()


@contextmanager
def held_after_canaries(module: ModuleType, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, another process holds the database just when `module` has a version ready to be written."""
    really, other = module.canaries, connect(home.database)

    def held(*rest: Any, **more: Any) -> Any:
        found = really(*rest, **more)
        hold(other)
        return found

    with monkeypatch.context() as patch:
        patch.setattr("data.database.BUSY_SECONDS", 0.2)
        patch.setattr(module, "canaries", held)
        yield
    other.close()


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (TooLittle("Rank more."), "nothing_to_learn", "Rank more."),
        (Cancelled("Cancelled."), "cancelled", "Cancelled."),
        (Locked("Others write."), "interrupted", f"{HELD_UP}: Others write."),
        (ShutDown(), "interrupted", SHUT_DOWN),
        (Refused("Lower it."), "failed", "Lower it."),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ends_a_run_early_is_its_state_and_its_reason(
    db: Database, error: BaseException, state: str, reason: str
) -> None:
    run = start_run(db)
    with pytest.raises(type(error)), recorded(db, run, TooLittle):
        raise error
    ended = runs.get(db, run.id)
    assert (ended.state, ended.reason) == (state, reason)


@pytest.mark.parametrize(
    ("key", "command"), [("manual-1", "refresh --resume"), ("reward-1", "ppo")], ids=["night", "reward"]
)
def test_a_run_that_a_full_disk_ended_says_how_it_goes_on(db: Database, key: str, command: str) -> None:
    run = start_run(db, key)
    with pytest.raises(OSError), recorded(db, run, TooLittle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = runs.get(db, run.id).reason
    assert said.startswith("The disk is full - free some space and try again. ")
    assert said.endswith(f'"trainer {command} {run.id}" goes on with it.')


@pytest.mark.parametrize("error", [ShutDown(), Deserted("Gone.")], ids=lambda error: type(error).__name__)
def test_a_team_that_lost_a_member_is_launched_again_and_no_watcher_goes_on_alone(
    db: Database, home: Home, error: BaseException
) -> None:
    """The launcher ends the chief as a shutdown does."""
    run = start_run(db)
    with pytest.raises(type(error)), recorded(db, run, TooLittle, team=Team(0, 2)):
        raise error
    ended = runs.get(db, run.id)
    assert ended.state == "interrupted" and ended.reason.startswith("A process of the team ended")
    assert f"trainer refresh --resume {run.id}" in ended.reason
    now = time.time()
    assert take_up(db, home, now=now, since=now + 1) is None


def test_a_run_that_comes_to_its_end_is_left_as_it_ended(db: Database) -> None:
    run = start_run(db)
    with recorded(db, run, TooLittle):
        done = finish(db, run, state="refused", reason="It is no better.")
    assert runs.get(db, run.id) == done and done.reason == "It is no better."


def test_where_others_hold_the_database_the_reason_waits_its_turn(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.database.BUSY_SECONDS", 0.2)
    run, other = start_run(db), connect(home.database)
    with pytest.raises(Refused, match="Lower it"), recorded(db, run, TooLittle):
        hold(other)
        raise Refused("Lower it.")
    assert runs.get(db, run.id).reason == "Lower it."
    other.close()


def test_where_they_hold_it_for_ever_what_ended_the_run_is_told_all_the_same(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "PATIENCE", 0.2)
    run, other = start_run(db), connect(home.database)
    with pytest.raises(Refused, match="Lower it"), recorded(db, run, TooLittle):
        other.execute("BEGIN IMMEDIATE")
        raise Refused("Lower it.")
    other.close()
    assert runs.get(db, run.id).state == "running", "until its lease has expired"


def test_a_run_that_was_written_off_stays_as_whoever_did_so_left_it(db: Database) -> None:
    run = start_run(db)
    runs.interrupt_expired(db, run.lease_until + 1)
    with pytest.raises(ZeroDivisionError), recorded(db, run, TooLittle):
        raise ZeroDivisionError
    assert runs.get(db, run.id).reason == runs.LEASE_EXPIRED


def test_only_the_chief_of_a_team_writes(db: Database) -> None:
    run = start_run(db)
    with pytest.raises(ZeroDivisionError), recorded(db, run, TooLittle, team=Team(1, 2)):
        raise ZeroDivisionError
    assert runs.get(db, run.id).state == "running"
