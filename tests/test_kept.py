"""kept.py: what takes long to read is not read at every look."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from chatbot.kept import Kept


class Reading:
    """A figure whose reading takes `seconds` of a clock that nothing else moves."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = seconds
        self.now = 100.0
        self.readings = 0
        monkeypatch.setattr("chatbot.kept.time", SimpleNamespace(monotonic=lambda: self.now))

    def __call__(self, name: str) -> str:
        self.now += self.seconds
        self.readings += 1
        return f"{name} {self.readings}"


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Reading]:
    return lambda seconds: Reading(seconds, monkeypatch)


def test_what_took_a_second_is_kept_for_fifty(reading: Callable[[float], Reading]) -> None:
    figure = reading(1.0)
    kept = Kept(figure)
    assert [kept("rankings") for _ in range(3)] == ["rankings 1"] * 3
    figure.now += 49
    assert kept("rankings") == "rankings 1"
    figure.now += 1
    assert kept("rankings") == "rankings 2"


def test_what_is_read_at_once_is_read_at_every_look(reading: Callable[[float], Reading]) -> None:
    kept = Kept(reading(0.01))
    assert [kept("rankings") for _ in range(2)] == ["rankings 1", "rankings 2"]


def test_another_question_gets_an_answer_of_its_own(reading: Callable[[float], Reading]) -> None:
    kept = Kept(reading(1.0))
    assert [kept("all"), kept("new"), kept("new")] == ["all 1", "new 2", "new 2"]


def test_a_reading_that_fails_is_not_kept(reading: Callable[[float], Reading]) -> None:
    figure = reading(1.0)
    failing = [OSError("disk")]

    def read(name: str) -> str:
        said = figure(name)
        if failing:
            raise failing.pop()
        return said

    kept = Kept(read)
    with pytest.raises(OSError, match="disk"):
        kept("rankings")
    assert kept("rankings") == "rankings 2"
