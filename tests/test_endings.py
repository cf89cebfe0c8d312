"""How the reference's replies end, and what being cut is worth."""

import pytest

from trainer.endings import Endings, endings_of
from trainer.forward import Reply


def replies(ended: int, cut: int) -> list[Reply]:
    return [Reply([1], [5, 2], True)] * ended + [Reply([1], [5, 6], False)] * cut


def test_the_gain_is_what_cut_replies_score_above_those_that_ended() -> None:
    scores = [-1.0, 0.0] * 6 + [0.5, 1.5] * 4
    assert endings_of(replies(12, 8), scores) == Endings(0.6, cut_gain=pytest.approx(1.5), replies=20)


def test_who_loses_by_being_cut_gains_nothing() -> None:
    assert endings_of(replies(10, 10), [1.0] * 10 + [-1.0] * 10) == Endings(0.5, 0.0, 20)


@pytest.mark.parametrize("ended, cut", [(30, 7), (7, 30), (0, 12), (12, 0)])
def test_a_few_replies_of_a_kind_say_nothing(ended: int, cut: int) -> None:
    found = endings_of(replies(ended, cut), [0.0] * ended + [2.0] * cut)
    assert found == Endings(ended / (ended + cut), 0.0, ended + cut)
