"""trainer/intervals.py: intervals know that outcomes of one conversation stand and fall together."""

import math
import random
import statistics

import pytest

from trainer.intervals import bootstrap_by_group, paired_bootstrap, wilson_interval


def test_the_interval_resamples_conversations_and_not_pairs() -> None:
    """Sixty pairs that come from twelve conversations, each all right or all wrong, tell little."""
    together = bootstrap_by_group([[float(i % 3 > 0)] * 5 for i in range(12)], seed=0)
    apart = bootstrap_by_group([[float(i % 3 > 0)] for i in range(60)], seed=0)
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])
    assert together[0] < 2 / 3 < together[1]


def test_the_interval_of_independent_outcomes_is_the_textbook_s() -> None:
    low, high = bootstrap_by_group([[float(i < 600)] for i in range(1000)], seed=0)
    assert [low, high] == pytest.approx(wilson_interval(0.6, 1000), abs=0.006)


def test_a_long_conversation_counts_by_its_pairs() -> None:
    low, high = bootstrap_by_group([[1.0] * 9, [0.0]] * 20, seed=0)
    assert low < 0.9 < high and low > 0.8


def test_a_handful_that_agree_give_no_certainty() -> None:
    low, high = bootstrap_by_group([[1.0]] * 3, seed=0)
    assert low < 0.5 and high == pytest.approx(1.0)


def test_ten_conversations_give_student_s_interval_and_not_the_normal_one() -> None:
    shares = [0.3 + 0.05 * i for i in range(10)]
    half = 2.262 * statistics.stdev(shares) / math.sqrt(10)  # t of 9 degrees of freedom
    middle = statistics.fmean(shares)
    expected = pytest.approx([middle - half, middle + half], abs=0.01)
    assert bootstrap_by_group([[share] for share in shares], seed=0, samples=4000) == expected
    assert paired_bootstrap([[(share, 0.0)] for share in shares], seed=0, samples=4000) == expected


def test_the_interval_misses_the_truth_about_as_seldom_as_it_says_with_few_conversations() -> None:
    """In 400 draws of 10 conversations a judge that is a coin: 95 % are 380, unwidened ones held 360."""
    draw = random.Random(3)
    held = 0
    for seed in range(400):
        coins = [[float(draw.random() < 0.5) for _ in range(draw.choice((3, 6)))] for _ in range(10)]
        low, high = bootstrap_by_group(coins, seed, samples=200)
        held += low <= 0.5 <= high
    assert held >= 370


def test_the_same_seed_gives_the_same_interval() -> None:
    groups = [[float(i % 3 > 0)] for i in range(30)]
    assert bootstrap_by_group(groups, seed=4) == bootstrap_by_group(groups, seed=4)


def test_wilson_s_interval_is_the_textbook_s() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-3)
    assert wilson_interval(1.0, 10) == pytest.approx([0.7225, 1.0], abs=1e-3)


def test_what_is_hard_for_both_cancels_in_a_paired_difference() -> None:
    """Half the conversations are hard; ours is right in one of ten more, and never where theirs is not."""
    groups = [[(float(i % 2 or i % 20 == 0), float(i % 2))] for i in range(400)]
    low, high = paired_bootstrap(groups, seed=0)
    assert 0 < low < 0.05 < high < 0.1
    ours = bootstrap_by_group([[a] for [(a, _)] in groups], seed=0)
    assert high - low < ours[1] - ours[0]


def test_a_paired_difference_has_a_sign_and_a_middle() -> None:
    better = [[(1.0, 0.0)], [(0.0, 0.0)], [(1.0, 1.0)]] * 10
    low, high = paired_bootstrap(better, seed=0)
    assert 0 < low < 1 / 3 < high
    swapped = paired_bootstrap([[(b, a) for a, b in group] for group in better], seed=0)
    assert swapped == pytest.approx([-high, -low], abs=0.04)
    assert paired_bootstrap([[(0.5, 0.5)]] * 20, seed=0) == [0, 0]


def test_pairs_of_one_conversation_are_resampled_together_in_a_difference_too() -> None:
    together = paired_bootstrap([[(float(i % 3 > 0), 0.0)] * 5 for i in range(12)], seed=0)
    apart = paired_bootstrap([[(float(i % 3 > 0), 0.0)] for i in range(60)], seed=0)
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])
