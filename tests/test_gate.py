"""trainer/gate.py: each check refuses its own case, and two equal models are no worse than each other."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.records import Sampling
from tests.learners import CPU, a_learner, some_replies
from tests.nights import JUDGING
from trainer.config import RefreshConfig
from trainer.gate import Verdict, check_judge, check_replies, check_wins, judge_candidate, profile
from trainer.reward import bootstrap_by_group
from trainer.rollout import Reply

LIKE = {"length": 60.0, "eos_rate": 0.5, "empty_rate": 0.0, "duplicate_rate": 0.02, "distinct_2": 0.8}
GOOD_JUDGE = {"accuracy": 0.7, "accuracy_interval": [0.6, 0.8]}


def test_a_judge_that_beats_a_coin_may_judge() -> None:
    assert check_judge(GOOD_JUDGE) == []


@pytest.mark.parametrize("interval", [[0.5, 0.9], [0.4, 0.6], [0.0, 1.0]])
def test_a_judge_that_may_be_a_coin_cannot_judge(interval: list[float]) -> None:
    (reason,) = check_judge({"accuracy": 0.6, "accuracy_interval": interval})
    assert "agrees with 60% of held-out comparisons" in reason
    assert "it cannot judge - collect more rankings" in reason


@pytest.mark.parametrize("low, passes", [(0.6, True), (0.48, True), (0.47, False), (0.3, False)])
def test_the_lower_bound_must_lie_above_one_half_less_the_margin(low: float, passes: bool) -> None:
    reasons = check_wins(0.55, [low, 0.7], margin=0.03)
    assert (reasons == []) == passes
    assert passes or f"the lower bound, {low:.0%}, is not above 47%" in reasons[0]


def test_a_candidate_that_loses_is_refused_and_one_that_wins_is_not() -> None:
    for wins, passes in ((180, True), (150, False), (100, False)):
        outcomes = [[float(i < wins)] for i in range(300)]
        assert (check_wins(wins / 300, bootstrap_by_group(outcomes, 0), 0.03) == []) == passes


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"empty_rate": 0.02}, "2.0% of the candidate's replies are empty"),
        ({"duplicate_rate": 0.1}, "repeat another prompt's reply word for word"),
        ({"distinct_2": 0.3}, "The candidate repeats itself"),
        ({"eos_rate": 0.3}, "Only 30% of the candidate's replies end by themselves"),
        ({"length": 400.0}, "have 400 tokens, the current's 60, which the rankings do not ask for"),
        ({"length": 5.0}, "have 5 tokens"),
    ],
)
def test_no_vote_buys_off_a_veto(change: dict[str, float], sentence: str) -> None:
    (reason,) = check_replies(LIKE | change, LIKE, winners_direction=0.0)
    assert sentence in reason


@pytest.mark.parametrize("direction", [-1.0, 0.0, 1.0])
def test_replies_like_the_current_ones_meet_no_veto(direction: float) -> None:
    near = {"length": 70.0, "eos_rate": 0.45, "empty_rate": 0.005, "duplicate_rate": 0.05, "distinct_2": 0.6}
    assert check_replies(near, LIKE, direction) == []


def test_replies_may_shorten_where_short_ones_win_and_only_there() -> None:
    shorter = LIKE | {"length": 30.0}
    assert check_replies(shorter, LIKE, winners_direction=-0.5) == []
    assert len(check_replies(shorter, LIKE, winners_direction=0.5)) == 1


def test_several_vetoes_are_all_told() -> None:
    assert len(check_replies(LIKE | {"length": 400.0, "eos_rate": 0.0, "empty_rate": 0.5}, LIKE, 0.0)) == 3


def test_a_profile_counts_what_needs_no_reading() -> None:
    same = Reply([1, 5], [50, 60, 70], False)  # as the first of the five, but cut
    found = profile([*some_replies(), same])
    assert found["length"] == pytest.approx(20 / 6)
    assert (found["eos_rate"], found["empty_rate"], found["duplicate_rate"]) == (1 / 2, 1 / 6, 1 / 3)


def judged(policy: Policy, change: Callable[[PreTrainedModel], None], judge: dict[str, Any]) -> Verdict:
    """A verdict on a changed base against the base, over all judging prompts."""
    models = tuple(load_model(policy.base, device=CPU, dtype=torch.float32, attention="sdpa") for _ in "ab")
    change(models[0])
    return judge_candidate(
        policy,
        (models[0], models[1]),
        JUDGING,
        judge,
        RefreshConfig(gate_prompts=len(JUDGING)),
        sampling=Sampling(max_new_tokens=12),
        winners_direction=0.0,
        tell=lambda fraction, message: None,
    )


def scramble(model: PreTrainedModel) -> None:
    """Another model: tokens trade places."""
    with torch.no_grad():
        weight = cast(Any, model.get_output_embeddings()).weight
        weight.copy_(weight.flip(0))


def test_two_equal_models_draw_and_pass(tiny_base: Base) -> None:
    verdict = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE)
    assert (verdict.passed, verdict.win_rate, verdict.win_rate_interval) == (True, 0.5, [0.5, 0.5])
    assert verdict.replies["candidate"] == verdict.replies["current"]
    assert all(sample["candidate"] == sample["current"] for sample in verdict.samples)


def test_what_one_judge_prefers_its_opposite_refuses(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    verdicts = []
    for _ in range(2):
        verdicts.append(judged(policy, scramble, GOOD_JUDGE))
        policy.heads["judge"].weight.data.neg_()
    low, high = sorted(verdict.win_rate for verdict in verdicts)
    assert low < 0.47 and high == pytest.approx(1 - low)
    loser = min(verdicts, key=lambda verdict: verdict.win_rate)
    assert not loser.passed
    assert loser.reasons[0].startswith(f"The judge prefers the candidate on only {low:.0%} of prompts")


def test_a_verdict_shows_samples_and_says_by_how_much(tiny_base: Base) -> None:
    verdict = judged(a_learner(tiny_base), lambda model: None, GOOD_JUDGE)
    (reason,) = verdict.reasons
    assert reason.startswith(f"The judge prefers the candidate on 50% of {len(JUDGING)} prompts (95 %")
    assert len(verdict.samples) == 10
    assert verdict.report()["sampling"] == {"temperature": 0.8, "top_p": 1.0, "max_new_tokens": 12}


def test_a_good_candidate_fails_where_the_judge_is_a_coin(tiny_base: Base) -> None:
    coin = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    verdict = judged(a_learner(tiny_base), lambda model: None, coin)
    assert not verdict.passed
    assert len(verdict.reasons) == 1 and "cannot judge" in verdict.reasons[0]
