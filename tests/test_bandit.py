"""PPO on a task with a known answer, a bandit: a reply is worth how often it pulls one lever."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import trainer.ppo
import trainer.rollout
from chatbot.basemodel import Base
from chatbot.policy import Policy
from tests.learners import a_config, a_learner, a_run
from trainer.forward import Reply
from trainer.guards import Guards
from trainer.rollout import Rollout, measure_replies

LEVER = 84


def pull(measure: Callable[..., Rollout]) -> Callable[..., Rollout]:
    """The real measurement with another score: how many tokens of the reply are LEVER, from -1 to 1."""

    def measured(policy: Policy, replies: list[Reply], **more: Any) -> Rollout:
        share = torch.tensor([2.0 * r.reply.count(LEVER) / 4 - 1 for r in replies])
        return replace(measure(policy, replies, **more), scores=share[None], judge_score=share)

    return measured


class Fearless(Guards):
    """Never stops: the lever's best policy is one that repeats itself."""

    def check_rollout(self, metrics: dict[str, float]) -> str | None:
        super().check_rollout(metrics)
        return None

    def check_update(self, metrics: dict[str, float]) -> str | None:
        return None


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in (2, 3, 4))])
def test_ppo_learns_to_pull_the_lever(tiny_base: Base, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(trainer.rollout, "measure_replies", pull(measure_replies))
    monkeypatch.setattr(trainer.ppo, "Guards", Fearless)
    config = a_config(
        seed=seed, updates=24, prompts_per_update=32, minibatch=16, inner_epochs=4, ppo_lr=3e-3, beta=0.01
    )
    result = a_run(a_learner(tiny_base, size=0.0), config, tokens=4)
    assert result.history[0]["score"] < -0.6
    assert sum(metrics["score"] for metrics in result.history[-3:]) / 3 > 0.8  # 0.9 of the way to all
    assert result.history[-1]["kl"] < 16
