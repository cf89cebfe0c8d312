"""chatbot/throttle.py: wrong passwords are counted, right ones are not."""

import time

import pytest

from chatbot.throttle import Throttle, TooManyAttempts


def test_the_throttle_counts_names_and_addresses_apart() -> None:
    throttle = Throttle(limit=2)
    for name in ("one", "two"):
        with pytest.raises(ZeroDivisionError), throttle.attempt(name, "address"):
            raise ZeroDivisionError
    with throttle.attempt("one", "elsewhere"):
        pass
    with pytest.raises(TooManyAttempts), throttle.attempt("three", "address"):
        pass


def test_right_passwords_are_not_counted() -> None:
    throttle, passed = Throttle(limit=1), 0
    for _ in range(20):
        with throttle.attempt("name"):
            passed += 1
    assert passed == 20


def test_the_throttle_forgets_after_its_time() -> None:
    throttle = Throttle(limit=1, seconds=0.01)
    with pytest.raises(ZeroDivisionError), throttle.attempt("name"):
        raise ZeroDivisionError
    time.sleep(0.02)
    with throttle.attempt("name"):
        assert len(throttle._wrong) == 1
