"""How replies end, and what being cut is worth."""

from dataclasses import replace

import pytest

from trainer.endings import endings_of
from trainer.forward import Reply


def replies(ended: int, cut: int) -> list[Reply]:
    return [Reply([1], [5, 2], True)] * ended + [Reply([1], [5, 6], False)] * cut


def batch(ended: int, cut: int, difference: float) -> tuple[list[bool], list[float]]:
    return [True] * ended + [False] * cut, [0.0] * ended + [difference] * cut


def test_the_gain_is_what_cut_replies_score_above_those_that_ended() -> None:
    scores = [-1.0, 0.0] * 6 + [0.5, 1.5] * 4
    found = endings_of(replies(12, 8), scores)
    assert (found.rate, found.replies, found.cut_gain) == (0.6, 20, pytest.approx(1.5))


def test_who_loses_by_being_cut_gains_nothing() -> None:
    assert endings_of(replies(10, 10), [1.0] * 10 + [-1.0] * 10).cut_gain == 0.0


@pytest.mark.parametrize(
    "ended, cut, part", [(8, 8, 1.0), (30, 7, 1.0), (30, 2, 0.47), (0, 12, 0.0), (12, 0, 0.0)]
)
def test_of_a_few_replies_of_a_kind_a_part_is_believed(ended: int, cut: int, part: float) -> None:
    found = endings_of(replies(ended, cut), [0.0] * ended + [2.0] * cut)
    assert found.cut_gain == pytest.approx(2.0 * part, abs=0.01)


def test_the_gain_follows_a_policy_that_ends_no_more_than_at_the_start() -> None:
    endings, gains = endings_of(replies(26, 38), [0.0] * 64), []
    for _ in range(6):
        endings = endings.after(*batch(8, 8, 2.0), more=-0.1)
        gains.append(endings.cut_gain)
    assert gains == sorted(gains) and gains[0] == pytest.approx(0.6, abs=0.1) and gains[-1] > 1.8
    assert (endings.rate, endings.replies) == (26 / 64, 64)  # of the reference still


@pytest.mark.parametrize("more, gain", [(-0.3, 2.0), (0.0, 2.0), (0.1, 1.25), (0.2, 0.5), (0.6, 0.5)])
def test_a_policy_that_ends_more_is_paid_what_the_references_replies_told(more: float, gain: float) -> None:
    endings = endings_of(replies(8, 8), [0.0] * 8 + [0.5] * 8)
    for _ in range(30):
        endings = endings.after(*batch(8, 8, 2.0), more=more)
    assert endings.cut_gain == pytest.approx(gain, abs=1e-3)
    for _ in range(30):  # what gains nothing any more lowers no price below the first
        endings = endings.after(*batch(8, 8, -1.0), more=more)
    assert endings.cut_gain == 0.5


def test_a_batch_counts_by_how_many_it_has_of_both_kinds() -> None:
    known = endings_of(replies(8, 8), [0.0] * 8 + [1.0] * 8)
    assert known.after(*batch(16, 0, 0.0), more=0.1) == replace(known, more=0.1, weight=0.6 * known.weight)
    few, many = (known.after(*batch(n, 16 - n, -2.0), more=0.0).difference for n in (15, 8))
    assert many < -0.5 < 0 < few < known.difference
