"""trainer/telling.py: a part's fraction becomes one of the whole."""

import pytest

from trainer.telling import nobody, within


def test_the_parts_of_the_work_tell_of_the_whole() -> None:
    heard: list[float] = []
    first, second = within(heard.append, 0.0, 0.8), within(heard.append, 0.8, 1.0)
    for part in (first, second, within(second, 0.5, 1.0)):
        part(0.5)
        part(1.0)
    assert heard == pytest.approx([0.4, 0.8, 0.9, 1.0, 0.95, 1.0])


def test_nobody_may_be_told_anything() -> None:
    for told in ((0.5,), ("judge", 1, 0.5, {"loss": 0.1})):
        assert nobody(*told) is None  # type: ignore[func-returns-value]
