"""reasons.py: why a run ended, and whether that is a reason to go on with it."""

import pytest
import torch

from data import runs
from data.database import Database
from data.errors import Locked
from tests.operating import start_run
from trainer.reasons import KILLED, SHUT_DOWN, is_worth_resuming, reason_of


def test_a_run_that_ran_out_of_memory_says_what_to_do_about_it() -> None:
    said = reason_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"))
    assert "ran out (CUDA out of memory. Tried to allocate 2.00 GiB) - close other programs" in said
    assert reason_of(RuntimeError("No shape.")) == "No shape." and reason_of(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("key", "reason", "is_worth_it"),
    [
        ("2026-11-21T03:30 UTC", SHUT_DOWN, True),
        ("manual-1", f"{KILLED} by signal 9.", True),
        ("manual-1", reason_of(Locked("Others write.")), True),
        ("manual-1", runs.LEASE_EXPIRED, True),
        ("manual-1", reason_of(KeyboardInterrupt()), False),
        ("reward-1", SHUT_DOWN, False),
        ("sft-1", SHUT_DOWN, False),
    ],
)
def test_a_night_that_was_cut_off_is_worth_resuming(
    db: Database, key: str, reason: str, is_worth_it: bool
) -> None:
    run = start_run(db, key)
    ended = runs.finish(db, run, state="interrupted", reason=reason)
    assert is_worth_resuming(ended) == is_worth_it


def test_a_night_that_somebody_cancelled_is_not_worth_resuming(db: Database) -> None:
    run = start_run(db)
    runs.request_cancel(db, run.id)
    ended = runs.finish(db, run, state="interrupted", reason=SHUT_DOWN)
    assert not is_worth_resuming(ended)
