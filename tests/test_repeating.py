"""A thread that works: again and again, past every failure, until it is told to end."""

import os
import sys
import threading

import pytest

from chatbot.repeating import Repeating

PATIENCE = 30.0


def test_it_works_until_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    thrice = threading.Event()
    rounds: list[str] = []

    def work() -> None:
        rounds.append(threading.current_thread().name)
        if len(rounds) == 3:
            thrice.set()

    repeating = Repeating(work, 0.001, "watching")
    repeating.start()
    assert thrice.wait(PATIENCE)
    repeating.close()
    seen = len(rounds)
    assert set(rounds) == {"watching"} and not caplog.records
    assert not [thread for thread in threading.enumerate() if thread.name == "watching"]
    repeating.close()
    assert len(rounds) == seen


def test_a_round_that_takes_long_is_waited_for_no_longer_than_one_may() -> None:
    may_end, has_begun = threading.Event(), threading.Event()

    def work() -> None:
        has_begun.set()
        may_end.wait(PATIENCE)

    repeating = Repeating(work, 0.001, "patient")
    repeating.start()
    assert has_begun.wait(PATIENCE)
    repeating.close(0.01)
    assert any(thread.name == "patient" for thread in threading.enumerate())
    may_end.set()
    repeating.close()
    assert not any(thread.name == "patient" for thread in threading.enumerate())


def test_a_round_that_fails_is_told_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    again = threading.Event()
    rounds: list[int] = []

    def work() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise OSError("no disk")
        again.set()

    repeating = Repeating(work, 0.001, "watching")
    repeating.start()
    assert again.wait(PATIENCE)
    repeating.close()
    [record] = caplog.records
    assert "A round of 'watching' failed" in record.getMessage() and record.exc_info


def test_closing_what_was_never_started_is_harmless() -> None:
    repeating = Repeating(lambda: None, 1.0, "watching")
    repeating.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "watching"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own here")
def test_work_that_is_not_urgent_is_done_at_the_lowest_priority_and_its_thread_alone() -> None:
    seen: dict[str, int] = {}
    before, worked = os.getpriority(os.PRIO_PROCESS, 0), threading.Event()

    def work(name: str) -> None:
        seen[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if len(seen) == 2:
            worked.set()

    both = [
        Repeating(lambda: work("urgent"), 0.001, "urgent"),
        Repeating(lambda: work("patient"), 0.001, "patient", is_urgent=False),
    ]
    for repeating in both:
        repeating.start()
    assert worked.wait(PATIENCE)
    for repeating in both:
        repeating.close()
    assert seen == {"urgent": before, "patient": 19}
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
