"""trainer/guards.py: every rule stops its own case with a sentence, and a sound run goes through."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest

from trainer.config import RefreshConfig
from trainer.endings import Endings
from trainer.guards import Guards, Rate, has_fallen, is_length_unasked

SOUND = {
    "start_kl": 0.0,
    "entropy": 2.0,
    "eos_rate": 0.5,
    "distinct_2": 0.8,
    "length": 60.0,
    "score": 0.0,
    "judge": 0.0,
    "empty_rate": 0.0,
    "score_std": 1.0,
    "disagreement": 0.3,
    "score_judge_correlation": 0.5,
}
STEP = {"approx_kl": 0.01, "clip_fraction": 0.1, "policy_loss": -0.1}


def guards(length_preference: float = 0.0, **changes: Any) -> Guards:
    return Guards(RefreshConfig(max_kl=8.0, **changes), length_preference)


def stopped(watch: Guards, last: dict[str, float], updates: int = 12) -> str | None:
    """What the guards say while the metrics go from sound to `last` and stay there."""
    assert watch.check_rollout(dict(SOUND)) is None
    assert watch.check_rollout(dict(SOUND)) is None
    return next(filter(None, (watch.check_rollout(SOUND | last) for _ in range(updates))), None)


def ending(watch: Guards, *rates: float) -> Guards:
    """After batches of which so many replies ended."""
    for rate in rates:
        watch.check_rollout(SOUND | {"eos_rate": rate})
    return watch


def test_a_policy_that_ends_clearly_fewer_replies_than_the_start_keeps_no_endings() -> None:
    assert ending(guards(), 0.5, 0.5, 0.42, 0.41, 0.41).keeps_endings
    assert not ending(guards(), 0.5, 0.5, 0.2, 0.2, 0.2).keeps_endings
    assert ending(guards(), 0.5, 0.5, 0.9, 0.9).keeps_endings


def test_how_many_more_replies_end_than_at_the_start_is_a_running_mean() -> None:
    assert ending(guards(), 0.5).more_endings == 0
    assert 0.05 < ending(guards(), 0.5, 0.5, 0.8).more_endings < 0.2
    assert ending(guards(), 0.5, 0.5, *[0.8] * 20).more_endings == pytest.approx(0.3, abs=1e-3)
    assert ending(guards(), 0.5, 0.5, *[0.1] * 20).more_endings == pytest.approx(-0.4, abs=1e-3)


def test_the_start_is_known_better_where_its_replies_were_counted_before() -> None:
    few = (0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
    assert ending(guards(), *few).keeps_endings
    counted = Guards(RefreshConfig(), 0.0, Endings(0.4, replies=64))
    assert not ending(counted, *few).keeps_endings  # 0.4 of 64 and 0.2 of 32 are 0.33
    assert ending(Guards(RefreshConfig(), 0.0, Endings(0.3, replies=64)), *few).keeps_endings


def test_a_sound_run_goes_through() -> None:
    watch = guards()
    for i in range(20):
        metrics = SOUND | {"score": 0.1 * i, "judge": 0.08 * i, "start_kl": 0.3 * i, "entropy": 2 - 0.05 * i}
        assert watch.check_rollout(metrics) is None
        assert watch.check_update(STEP) is None


@pytest.mark.parametrize(
    "last, sentence",
    [
        ({"start_kl": 20.0}, "nats a reply from where it started, more than 8"),
        ({"entropy": 0.4}, "The entropy fell to"),
        ({"eos_rate": 0.0}, "of replies end by themselves, 50% did at the start"),
        ({"distinct_2": 0.2}, "Replies repeat themselves: distinct-2 fell from 0.80"),
        ({"empty_rate": 0.3}, "of replies are empty, 0% were at the start"),
        ({"length": 400.0}, "tokens, which the rankings do not ask for"),
        ({"length": 5.0}, "tokens, which the rankings do not ask for"),
        ({"disagreement": 1.0}, "more than three times the 0.30 of the start"),
        ({"score_std": 0.0}, "gives every reply the same score"),
        ({"score_judge_correlation": -0.9}, "The reward contradicts the judge"),
        ({"score": float("nan")}, "score is not a finite number"),
        ({"kl": float("inf")}, "kl is not a finite number"),
    ],
)
def test_each_rule_stops_its_own_case(last: dict[str, float], sentence: str) -> None:
    reason = stopped(guards(), last)
    assert reason is not None and sentence in reason


@pytest.mark.parametrize(
    "last",
    [
        {"start_kl": 7.5},
        {"entropy": 0.7},
        {"eos_rate": 0.41},
        {"distinct_2": 0.45},
        {"empty_rate": 0.2},
        {"length": 200.0},
        {"disagreement": 0.8},
        {"score_std": 0.01},
        {"score_judge_correlation": -0.2},
    ],
)
def test_what_is_within_a_limit_goes_on(last: dict[str, float]) -> None:
    assert stopped(guards(), last) is None


def test_one_odd_batch_does_not_stop_a_run() -> None:
    watch = guards()
    assert stopped(watch, {"start_kl": 15.0, "eos_rate": 0.3}, updates=1) is None
    assert watch.check_rollout(dict(SOUND)) is None


@pytest.mark.parametrize(
    "growth, direction, unasked",
    [
        (2.0, -0.5, True),  # longer, though the short ones win
        (2.0, 0.5, False),
        (0.5, 0.5, True),
        (0.5, -0.5, False),
        (0.3, -0.5, False),  # far shorter, as the winners are
        (0.1, -0.5, True),  # a tenth is fragments, whoever wins
        (2.0, 0.0, False),
        (6.0, 0.0, True),
        (6.0, 0.5, True),  # beyond five times, whoever wins
        (0.1, 0.0, True),
        (1.4, -1.0, False),
        (30 / 105, -0.9, False),  # as a night may come to that is asked for short replies
        (6 / 88, -0.9, True),  # and one that went too far
    ],
)
def test_length_may_follow_the_winners(growth: float, direction: float, unasked: bool) -> None:
    assert is_length_unasked(growth, direction) == unasked
    assert (stopped(guards(direction), {"length": 60.0 * growth}) is not None) == unasked


def test_a_tiny_disagreement_may_grow_threefold() -> None:
    watch = guards()
    assert watch.check_rollout(SOUND | {"disagreement": 0.01}) is None
    assert all(watch.check_rollout(SOUND | {"disagreement": 0.4}) is None for _ in range(8))


def test_with_large_batches_ten_points_fewer_ends_of_turn_stop() -> None:
    assert stopped(guards(prompts_per_update=512), {"eos_rate": 0.39}) is not None
    assert stopped(guards(prompts_per_update=512), {"eos_rate": 0.41}) is None


def stopped_by_chance(name: str, rate: float) -> int:
    """Of 300 nights that change nothing, how many a guard stops."""

    def night(seed: int) -> str | None:
        pick, watch = random.Random(seed), guards()
        batches = [sum(pick.random() < rate for _ in range(16)) / 16 for _ in range(13)]
        return next(filter(None, (watch.check_rollout(SOUND | {name: x}) for x in batches)), None)

    return sum(night(seed) is not None for seed in range(300))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_chance_stops_hardly_a_night_for_its_ends_of_turn(rate: float) -> None:
    """Ten points alone would stop a third of these nights."""
    assert stopped_by_chance("eos_rate", rate) <= 5


@pytest.mark.parametrize("rate", [0.03, 0.12, 0.5])
def test_chance_stops_hardly_a_night_for_its_empty_replies(rate: float) -> None:
    """A base that says nothing now and then must be able to learn to say something."""
    assert stopped_by_chance("empty_rate", rate) <= 5


def test_two_empty_replies_in_the_first_batch_tell_nothing_yet() -> None:
    assert guards().check_rollout(SOUND | {"empty_rate": 2 / 16}) is None


@pytest.mark.parametrize("rate", [0.0, 0.03, 0.12, 0.3])
def test_replies_that_become_empty_are_noticed_within_five_updates(rate: float) -> None:
    watch = guards()
    for _ in range(4):
        assert watch.check_rollout(SOUND | {"empty_rate": rate}) is None
    said = [watch.check_rollout(SOUND | {"empty_rate": 0.9}) for _ in range(5)]
    assert any(reason and f"of replies are empty, {rate:.0%} were" in reason for reason in said)


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9])
def test_replies_that_no_longer_end_are_noticed_within_five_updates(rate: float) -> None:
    watch = guards()
    for _ in range(4):
        assert watch.check_rollout(SOUND | {"eos_rate": rate}) is None
    said = [watch.check_rollout(SOUND | {"eos_rate": 0.0}) for _ in range(5)]
    assert any(reason and "end by themselves" in reason for reason in said)


@pytest.mark.parametrize("then, far, not_so_far", [(0.2, 0.02, 0.03), (0.5, 0.19, 0.21), (1.0, 0.76, 0.77)])
def test_the_rate_of_few_replies_has_fallen_only_where_chance_does_not_explain_it(
    then: float, far: float, not_so_far: float
) -> None:
    at_first = Rate(then, 2 * 16)
    assert has_fallen(at_first, Rate(far, 4 * 16)) and not has_fallen(at_first, Rate(not_so_far, 4 * 16))


def test_the_rate_of_many_replies_has_fallen_where_it_lost_ten_points() -> None:
    at_first = Rate(0.5, 2 * 1000)
    assert has_fallen(at_first, Rate(0.39, 4 * 1000)) and not has_fallen(at_first, Rate(0.41, 4 * 1000))


def test_what_was_seen_can_be_written_down_and_restored() -> None:
    one = guards()
    for i in range(4):
        one.check_rollout(SOUND | {"judge": 0.1 * i})
        one.check_update(STEP | {"clip_fraction": 0.5 if i > 1 else 0.1})
    other = guards()
    other.restore(json.loads(json.dumps(one.facts())))
    assert other.facts() == one.facts() and other.judge == one.judge
    assert other.check_update(STEP | {"clip_fraction": 0.5}) is not None


def over_optimised(watch: Guards, judge_slope: float) -> str | None:
    metrics = [SOUND | {"score": 0.2 * i, "judge": judge_slope * i} for i in range(12)]
    return next(filter(None, map(watch.check_rollout, metrics)), None)


def test_the_reward_rising_while_the_judge_falls_stops() -> None:
    reason = over_optimised(guards(), judge_slope=-0.2)
    assert reason is not None and "while the judge fell by" in reason


def test_the_reward_rising_with_the_judge_or_past_a_flat_one_goes_on() -> None:
    assert over_optimised(guards(), judge_slope=0.1) is None
    assert over_optimised(guards(), judge_slope=-0.01) is None


def test_an_update_that_goes_too_far_stops() -> None:
    reason = guards().check_update(STEP | {"approx_kl": 0.2})
    assert reason == "One update moved the policy by 0.20 nats a token, more than 0.15."


def test_a_gradient_that_is_no_number_stops() -> None:
    assert guards().check_update(STEP | {"grad_norm_value": float("inf")}) == (
        "grad_norm_value is not a finite number."
    )


def test_clipping_must_be_heavy_three_times_in_a_row() -> None:
    watch, heavy = guards(), STEP | {"clip_fraction": 0.5}
    said = [watch.check_update(metrics) for metrics in (heavy, heavy, STEP, heavy, heavy, heavy)]
    assert said[:5] == [None] * 5
    assert said[5] is not None and "clipped in three updates in a row" in said[5]


def test_the_judge_is_heard_as_a_running_mean() -> None:
    watch = guards()
    heard: list[float] = []
    for _ in range(6):
        watch.check_rollout(SOUND | {"judge": 1.0 if heard else 0.0})
        heard.append(watch.judge)
    assert heard[0] == 0.0 and heard[1] == pytest.approx(0.4)
    assert all(a < b < 1 for a, b in pairwise(heard))
