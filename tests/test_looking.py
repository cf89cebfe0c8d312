"""A thread that looks: again and again, past every failure, until it is told to end."""

import threading

import pytest

from chatbot.looking import Looking

PATIENCE = 30.0


def test_it_looks_until_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    thrice = threading.Event()
    looks: list[str] = []

    def look() -> None:
        looks.append(threading.current_thread().name)
        if len(looks) == 3:
            thrice.set()

    looking = Looking(look, 0.001, "watching")
    looking.start()
    assert thrice.wait(PATIENCE)
    looking.close()
    seen = len(looks)
    assert set(looks) == {"watching"} and not caplog.records
    assert not [thread for thread in threading.enumerate() if thread.name == "watching"]
    looking.close()
    assert len(looks) == seen


def test_a_look_that_fails_is_told_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    again = threading.Event()
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            raise OSError("no disk")
        again.set()

    looking = Looking(look, 0.001, "watching")
    looking.start()
    assert again.wait(PATIENCE)
    looking.close()
    [record] = caplog.records
    assert "A look of 'watching' failed" in record.getMessage() and record.exc_info


def test_closing_what_was_never_started_is_harmless() -> None:
    looking = Looking(lambda: None, 1.0, "watching")
    looking.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "watching"]
