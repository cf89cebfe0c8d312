"""Runs that go wrong on purpose stop within five updates and say why; sound ones go through to the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM

import trainer.sampler
from chatbot.basemodel import Base, load_base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.home import Home
from data.records import Sampling
from tests.learners import CPU, END, PROMPTS, a_config, a_learner, a_run
from trainer.config import RefreshConfig
from trainer.forward import Reply
from trainer.result import PolicyResult
from trainer.reward import normalise
from trainer.sampler import sample_replies

SOUND_LR = 5e-4


def a_sound_config(**changes: Any) -> RefreshConfig:
    """A night in small, with the limits and the penalty that a night has."""
    return a_config(
        **({"updates": 12, "prompts_per_update": 16, "minibatch": 8, "inner_epochs": 2, "ppo_lr": SOUND_LR,
            "max_kl": 8.0, "warmup_updates": 4} | changes)
    )  # fmt: skip


def stopped_in_time(result: PolicyResult) -> str:
    assert result.updates <= 5 and len(result.history) <= 6
    assert result.stopped is not None
    return result.stopped


def head(policy: Policy, name: str) -> torch.Tensor:
    return policy.heads[name].weight.data


def not_a_number(policy: Policy) -> None:
    head(policy, "reward-1")[3] = float("nan")


def sign_flip(policy: Policy) -> None:
    """The judge sees the opposite of what the policy is rewarded for."""
    for name in ("reward-0", "reward-1"):
        head(policy, name).neg_()


def constant(policy: Policy) -> None:
    for name in ("reward-0", "reward-1"):
        head(policy, name).zero_()


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (not_a_number, "score is not a finite number."),
        (sign_flip, "The reward contradicts the judge: within a batch they correlate at -"),
        (constant, "The reward gives every reply the same score, which teaches nothing."),
    ],
)
def test_a_spoilt_reward_stops_within_five_updates(
    tiny_base: Base, spoil: Callable[[Policy], None], sentence: str
) -> None:
    policy = a_learner(tiny_base)
    with torch.no_grad():
        head(policy, "judge").copy_(head(policy, "reward-0") + head(policy, "reward-1"))
        spoil(policy)
    before = policy.keep("policy")
    result = a_run(policy, a_sound_config(), tokens=12, start="start")
    assert sentence in stopped_in_time(result)
    assert all(bool(t.isfinite().all()) for t in policy.state("policy").values())
    if result.best_update == 0:
        assert all(torch.equal(t, before[k]) for k, t in policy.state("policy").items())


def test_a_hundredfold_learning_rate_stops_within_five_updates(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    before = policy.keep("policy")
    result = a_run(policy, a_sound_config(ppo_lr=100 * SOUND_LR), tokens=12, start="start")
    reason = stopped_in_time(result)
    assert "nats a token, more than 0.15." in reason or "is not a finite number." in reason
    assert result.best_update == 0
    assert all(torch.equal(t, before[k]) for k, t in policy.state("policy").items())


@pytest.fixture
def a_base_that_ends(tiny_directory: Path, home: Home, tmp_path: Path) -> Base:
    """The tiny model, but its end of turn is among its favourite tokens."""
    base = load_base(str(tiny_directory), home, lambda text: None)
    model = AutoModelForCausalLM.from_pretrained(base.directory)
    with torch.no_grad():
        weight = cast(Any, model.get_output_embeddings()).weight
        weight[END] = weight[84]
    model.save_pretrained(tmp_path / "ending")
    base.tokenizer.save_pretrained(tmp_path / "ending")
    return load_base(str(tmp_path / "ending"), home, lambda text: None)


def endless_from(call: int) -> Callable[..., list[Reply]]:
    """The real sampling, which from the given batch on knows no end of turn."""
    calls = iter(range(100))

    def sampled(*arguments: Any, end_of_turn: int, **more: Any) -> list[Reply]:
        end = end_of_turn if next(calls) < call else -1
        return sample_replies(*arguments, end_of_turn=end, **more)

    return sampled


@pytest.mark.parametrize("batch", [2, 5])
def test_endless_replies_stop_within_five_updates(
    a_base_that_ends: Base, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(trainer.sampler, "sample_replies", endless_from(batch))
    result = a_run(a_learner(a_base_that_ends, size=0.0), a_sound_config(), tokens=24)
    assert result.stopped is not None and "of replies end by themselves" in result.stopped
    assert batch < result.updates < batch + 5


def blank_from(call: int) -> Callable[..., list[Reply]]:
    """The real sampling, of whose replies from the given batch on nothing but the end of turn is left."""
    calls = iter(range(100))

    def sampled(*arguments: Any, **more: Any) -> list[Reply]:
        replies = sample_replies(*arguments, **more)
        return replies if next(calls) < call else [Reply(r.prompt, [END], True, [0.0]) for r in replies]

    return sampled


@pytest.mark.parametrize("batch", [2, 5])
def test_empty_replies_stop_within_five_updates(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(trainer.sampler, "sample_replies", blank_from(batch))
    result = a_run(a_learner(tiny_base, size=0.0), a_sound_config(), tokens=24)
    assert result.stopped is not None and "of replies are empty, 0% were" in result.stopped
    assert batch <= result.updates < batch + 5


def a_sound_learner(base: Base) -> Policy:
    """A policy that is the base, and rewards as a night has: the base's replies score 0 with a spread of 1.

    The judge leans to what the first reward model likes, as one does that learned the same taste elsewhere.
    """
    policy = a_learner(base, size=0.0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(99)
        weight = head(policy, "judge")
        weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() / 2)
    model = load_model(base, device=CPU, dtype=torch.float32)
    sampling = Sampling(max_new_tokens=24)
    replies = sample_replies(model, PROMPTS * 16, sampling=sampling, end_of_turn=END, seed=77)
    for name in ("reward-0", "reward-1", "judge"):
        normalise(policy, name, replies)
    return policy


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 10))])
def test_clean_seeds_never_stop(tiny_base: Base, seed: int) -> None:
    result = a_run(a_sound_learner(tiny_base), a_sound_config(seed=seed), tokens=24)
    assert (result.stopped, result.updates) == (None, 12)
    spreads = [metrics["score_std"] for metrics in result.history]
    assert min(spreads) > 0.3, "the guards on scores have something to see"
