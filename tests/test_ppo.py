"""trainer/ppo.py: each equation against a slow one, each sign by what it does, and whole updates."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import trainer.ppo
import trainer.rollout
from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.records import Sampling
from tests.learners import CPU, a_learner, shake, some_replies
from tests.plain_ppo import (
    PlainModel,
    plain_episodes,
    plain_first_adam_step,
    plain_gae,
    plain_losses,
    plain_policy_term,
    plain_value_term,
    plain_whiten,
)
from trainer.config import RefreshConfig
from trainer.guards import Guards
from trainer.ppo import (
    PPOResult,
    adapt_beta,
    apply_eos_rule,
    gae,
    masked_mean,
    minibatches,
    policy_loss,
    prepare_roles,
    take_step,
    token_rewards,
    train_ppo,
    value_loss,
    whiten,
)
from trainer.rollout import Reply, Rollout, measure_replies

MASK = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, True, False]])
LENGTHS = [4, 1, 3]


def noise(seed: int, scale: float = 1.0) -> Tensor:
    """(3, 4), with numbers at padding too: nothing there may matter."""
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def real(x: Tensor) -> list[list[float]]:
    """The real tokens of each row as numbers."""
    return [row[:n].tolist() for row, n in zip(x, LENGTHS, strict=True)]


def flat(x: Tensor) -> list[float]:
    return [number for row in real(x) for number in row]


# The equations


def test_the_rewards_of_a_reply_sum_to_its_score_less_beta_times_its_kl() -> None:
    logprob, ref, score = noise(1), noise(2), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rewards = token_rewards(logprob, ref, score, MASK, beta=0.1)
    kl = ((logprob - ref) * MASK).sum(1)
    torch.testing.assert_close(rewards.sum(1), score - 0.1 * kl)


def test_the_score_stands_at_the_last_token_and_straying_from_the_reference_costs() -> None:
    logprob, score = torch.zeros(3, 4), torch.tensor([1.0, 2.0, 3.0])
    rewards = token_rewards(logprob, logprob - 1, score, MASK, beta=0.25)
    assert rewards.tolist() == [[-0.25, -0.25, -0.25, 0.75], [1.75, 0, 0, 0], [-0.25, -0.25, 2.75, 0]]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_over_the_future_that_defines_it(gamma: float, lam: float) -> None:
    rewards, values = noise(3) * MASK, noise(4)
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    for row, n in enumerate(LENGTHS):
        slow = plain_gae(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(slow[0])
        assert returns[row, :n].tolist() == pytest.approx(slow[1])
    assert not advantages[~MASK].any() and not returns[~MASK].any()


def test_whitening_gives_mean_0_and_variance_1_over_the_real_tokens_of_the_batch() -> None:
    x = noise(5) * 3 + 2
    white = whiten(x, MASK)
    assert flat(white) == pytest.approx([number for row in plain_whiten(real(x)) for number in row])
    assert float(white[MASK].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[MASK].var(correction=0)) == pytest.approx(1)
    assert not white[~MASK].any()


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_the_policy_loss_is_the_mean_of_what_each_token_loses(scale: float) -> None:
    old, advantage = noise(6), noise(7)
    new = old + noise(8, scale)
    loss, stats = policy_loss(new, old, advantage, MASK, clip=0.2)
    terms = [
        float(plain_policy_term(n, o, a, 0.2))
        for n, o, a in zip(flat(new), flat(old), flat(advantage), strict=True)
    ]
    assert float(loss) == pytest.approx(sum(terms) / len(terms))
    ratios = (new - old)[MASK].exp()
    assert stats["ratio_mean"] == pytest.approx(float(ratios.mean()))
    assert stats["ratio_max"] == pytest.approx(float(ratios.max()))
    assert stats["approx_kl"] == pytest.approx(float((ratios - 1 - ratios.log()).mean()))


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_the_value_loss_is_the_mean_of_what_each_token_loses(scale: float) -> None:
    old, returns = noise(9), noise(10)
    new = old + noise(11, scale)
    terms = [
        plain_value_term(n, o, r, 0.2) for n, o, r in zip(flat(new), flat(old), flat(returns), strict=True)
    ]
    assert float(value_loss(new, old, returns, MASK, 0.2)) == pytest.approx(sum(terms) / len(terms))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_down_the_loss_makes_good_tokens_likelier_and_bad_ones_rarer(advantage: float) -> None:
    logprob = torch.zeros(3, 4, requires_grad=True)
    loss, _ = policy_loss(logprob, torch.zeros(3, 4), torch.full((3, 4), advantage), MASK, 0.2)
    loss.backward()
    assert logprob.grad is not None
    assert ((-logprob.grad * advantage)[MASK] > 0).all()
    assert not logprob.grad[~MASK].any()


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True)],
)
def test_clipping_stops_only_what_has_gone_far_enough_the_good_way(
    ratio: float, advantage: float, moves: bool
) -> None:
    logprob = torch.full((1, 1), ratio).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, stats = policy_loss(logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, 0.2)
    loss.backward()
    assert logprob.grad is not None
    assert bool(logprob.grad.any()) == moves
    assert stats["clip_fraction"] == float(not moves)


def test_a_step_down_the_value_loss_goes_to_the_return() -> None:
    value = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    value_loss(value, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), mask, 0.2).backward()
    assert value.grad is not None
    assert value.grad.sign().tolist() == [[-1, 1]]


def test_what_stands_at_padding_changes_no_loss() -> None:
    new, old, advantage = noise(12), noise(13), noise(14)
    other = torch.where(MASK, new, torch.tensor(9.0, dtype=torch.float64))
    assert policy_loss(new, old, advantage, MASK, 0.2) == policy_loss(other, old, advantage, MASK, 0.2)
    assert value_loss(new, old, advantage, MASK, 0.2) == value_loss(other, old, advantage, MASK, 0.2)
    assert masked_mean(new, MASK) == masked_mean(other, MASK)


def test_a_cut_reply_scores_less_than_nothing_where_the_reference_finishes() -> None:
    score, finished = torch.tensor([2.0, 2.0, -0.5]), torch.tensor([True, False, False])
    assert apply_eos_rule(score, finished, reference_finish_rate=0.8).tolist() == [2.0, -1.0, -1.5]


def test_a_cut_reply_keeps_its_score_where_the_reference_is_cut_too() -> None:
    score, finished = torch.tensor([2.0, 2.0, -0.5]), torch.tensor([True, False, False])
    assert torch.equal(apply_eos_rule(score, finished, reference_finish_rate=0.79), score)


def test_beta_rises_where_the_kl_is_too_large_and_never_fast() -> None:
    assert adapt_beta(0.1, kl=4.0, target=2.0, replies=20) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert adapt_beta(0.1, kl=1.0, target=2.0, replies=20) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert adapt_beta(0.1, kl=2.0, target=2.0, replies=20) == pytest.approx(0.1)
    assert adapt_beta(0.1, kl=9.0, target=0.0, replies=20) == 0.1


def test_every_reply_is_used_once_an_epoch_in_a_fresh_order() -> None:
    config = RefreshConfig(prompts_per_update=10, minibatch=4, inner_epochs=2)
    rows = minibatches(config, 3, CPU)
    assert [len(batch) for batch in rows] == [4, 4, 2] * 2
    first, second = torch.cat(rows[:3]).tolist(), torch.cat(rows[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


# Updates of a real policy


def a_config(**changes: Any) -> RefreshConfig:
    base = RefreshConfig(
        precision="float32", rank=4, updates=1, prompts_per_update=4, minibatch=4, inner_epochs=1,
        warmup_updates=1, max_kl=1e6, reward_epochs=1,
    )  # fmt: skip
    return replace(base, **changes)


def prepared(rollout: Rollout, config: RefreshConfig) -> tuple[Tensor, Tensor]:
    """Whitened advantages and returns, as the loop makes them."""
    rewards = token_rewards(rollout.logprob, rollout.ref_logprob, rollout.score, rollout.mask, config.beta)
    advantages, returns = gae(rewards, rollout.value, rollout.mask, config.gamma, config.lam)
    return whiten(advantages, rollout.mask), returns


def test_the_value_head_starts_as_the_normalised_reward(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.heads["reward"].mean.fill_(0.7)
    policy.heads["reward"].std.fill_(2.5)
    prepare_roles(policy, a_config(), starts_at_base=True)
    hidden = torch.randn(5, policy.hidden_size)
    torch.testing.assert_close(policy.heads["value"](hidden), policy.heads["reward"](hidden))
    assert float(policy.heads["value"].std) == 1 and float(policy.heads["value"].mean) == 0
    rollout = measure_replies(policy, [Reply([1, 5], [6], False)], temperature=1.0, start=None)
    alone = measure_replies(policy, [Reply([1], [5], False)], temperature=1.0, start=None)
    assert float(rollout.value[0, 0]) == pytest.approx(float(alone.score[0]), abs=1e-5)


def test_the_first_inner_step_has_ratio_1(tiny_base: Base) -> None:
    policy, config = a_learner(tiny_base), a_config(ppo_lr=1e-12)
    _, optimiser = prepare_roles(policy, config, starts_at_base=True)
    rollout = measure_replies(policy, some_replies(), temperature=config.temperature, start=None)
    for rows in ([0, 3], [1, 2, 4]):
        stats = take_step(policy, optimiser, rollout, *prepared(rollout, config), torch.tensor(rows), config)
        assert abs(stats["ratio_mean"] - 1) < 1e-3 and abs(stats["ratio_max"] - 1) < 1e-3
        assert stats["clip_fraction"] == 0


def plain(policy: Policy, name: str, head: str | None = None) -> PlainModel:
    return PlainModel(policy.base, policy.state(name), policy.heads[head].state_dict() if head else None)


def test_one_whole_update_equals_a_slow_one_in_float64(tiny_base: Base) -> None:
    """From replies to moved weights, policy and value, with ratios away from 1 and some of them clipped."""
    policy, config = a_learner(tiny_base), a_config(ppo_lr=1e-3, value_coefficient=0.5)
    policy.heads["reward"].std.fill_(0.5)
    replies = some_replies()
    reference = PlainModel(tiny_base, {}, None)
    was, reward = plain(policy, "policy"), plain(policy, "reward", "reward")

    _, optimiser = prepare_roles(policy, config, starts_at_base=True)
    rollout = measure_replies(policy, replies, temperature=config.temperature, start=None)
    advantages, returns = prepared(rollout, config)
    shake(policy, "policy", 0.01, seed=20)  # as if some steps had gone before
    shake(policy, "value", 0.03, seed=21)
    now, value = plain(policy, "policy"), plain(policy, "value", "value")
    stats = take_step(policy, optimiser, rollout, advantages, returns, torch.arange(len(replies)), config)

    episodes = plain_episodes(
        [(r.prompt, r.reply) for r in replies], was, reference, reward,
        beta=config.beta, lam=config.lam, temperature=config.temperature,
    )  # fmt: skip
    policy_slow, value_slow = plain_losses(episodes, now, value, clip=0.2, temperature=config.temperature)
    (policy_slow + config.value_coefficient * value_slow).backward()
    assert 0 < stats["clip_fraction"] < 1
    assert stats["policy_loss"] == pytest.approx(policy_slow.item(), abs=1e-4)
    assert stats["value_loss"] == pytest.approx(value_slow.item(), rel=1e-3)
    for name, model in (("policy", now), ("value", value)):
        leaves = [*model.tensors.values(), *(model.head[k] for k in ("weight", "bias") if model.head)]
        norm = plain_first_adam_step(leaves, config.ppo_lr)
        assert stats[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-3)
        for key, tensor in policy.state(name).items():
            assert (tensor - model.tensors[key]).abs().max() < 0.02 * config.ppo_lr, key


def test_returns_are_made_before_whitening(tiny_base: Base) -> None:
    """The value learns towards returns in the units of the score: a constant score of 5 is a return of 5."""
    policy = a_learner(tiny_base)
    prepare_roles(policy, a_config(), starts_at_base=True)
    rollout = measure_replies(policy, some_replies(), temperature=0.8, start=None)
    rollout = replace(rollout, score=torch.full((5,), 5.0), value=torch.zeros_like(rollout.value))
    _, returns = prepared(rollout, a_config(beta=0.0, lam=1.0))
    assert returns[rollout.mask].unique().tolist() == [5.0]


def a_run(policy: Policy, config: RefreshConfig, *, tokens: int = 6, **more: Any) -> PPOResult:
    """PPO on four short prompts."""
    merged = load_model(policy.base, device=CPU, dtype=torch.float32, attention="sdpa")
    prompts = [[1, 80], [1, 90, 91], [1, 100], [1, 110, 111]]
    more = {"reference_finish_rate": 0.0, "starts_at_base": True} | more
    sampling = Sampling(config.temperature, 1.0, tokens)
    return train_ppo(policy, merged, prompts, config, sampling=sampling, **more)


def test_nothing_but_policy_and_value_moves(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    before = {name: policy.keep(name) for name in ("reward", "judge", "policy")}
    base = {n: p.clone() for n, p in policy._plain.named_parameters() if "lora_" not in n}
    a_run(policy, a_config(updates=2, ppo_lr=1e-2), starts_at_base=False)
    for name in ("reward", "judge"):
        assert all(torch.equal(t, before[name][k]) for k, t in policy.state(name).items()), name
    for n, p in policy._plain.named_parameters():
        assert "lora_" in n or torch.equal(p, base[n]), n
    assert policy.adapters == ["policy", "reward", "judge"]


def test_a_run_logs_what_the_night_is_judged_by(tiny_base: Base) -> None:
    policy, heard = a_learner(tiny_base, size=0.0), []
    result = a_run(
        policy, a_config(updates=2), tell=lambda update, done, metrics: heard.append((update, done))
    )
    assert heard == [(0, 0.5), (1, 1.0), (2, 1.0)]
    assert (result.updates, result.stopped, len(result.history)) == (2, None, 3)
    first = result.history[0]
    assert abs(first["kl"]) < 1e-4 and abs(first["start_kl"]) < 1e-4
    assert first["first_ratio_error"] < 1e-3
    logged = "score score_std judge beta entropy eos_rate length distinct_2 approx_kl explained_variance"
    assert set(logged.split()) <= set(first)
    assert {"seconds_sampling", "seconds_measuring", "seconds_training"} <= set(first)


def test_a_run_that_a_guard_stops_goes_back_to_the_best_checkpoint(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    before = policy.keep("policy")
    result = a_run(
        policy, a_config(updates=6, ppo_lr=1e-3, inner_epochs=2, max_kl=0.001), starts_at_base=False
    )
    assert result.stopped is not None and "nats a reply from where it started" in result.stopped
    assert (result.best_update, result.updates) == (0, 1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in policy.state("policy").items())


def test_the_learning_rate_rises_over_the_first_updates(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def step_and_note(policy: Policy, optimiser: torch.optim.Optimizer, *rest: Any) -> dict[str, float]:
        rates.append(optimiser.param_groups[0]["lr"])
        return take_step(policy, optimiser, *rest)

    monkeypatch.setattr(trainer.ppo, "take_step", step_and_note)
    a_run(a_learner(tiny_base), a_config(updates=3, warmup_updates=2, ppo_lr=1e-4))
    assert rates == pytest.approx([5e-5, 1e-4, 1e-4])


def test_steps_see_whitened_advantages_and_plain_returns(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Rollout, Tensor, Tensor]] = []

    def step_and_note(policy: Policy, optimiser: torch.optim.Optimizer, *rest: Any) -> dict[str, float]:
        seen.append(rest[:3])
        return take_step(policy, optimiser, *rest)

    monkeypatch.setattr(trainer.ppo, "take_step", step_and_note)
    a_run(a_learner(tiny_base), a_config(minibatch=2))
    for rollout, advantages, returns in seen:
        assert float(advantages[rollout.mask].mean()) == pytest.approx(0, abs=1e-5)
        assert float(advantages[rollout.mask].std(correction=0)) == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(returns, prepared(rollout, a_config())[1])


def test_rollouts_at_another_temperature_than_the_losses_are_our_mistake(tiny_base: Base) -> None:
    policy, config = a_learner(tiny_base), a_config()
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32, attention="sdpa")
    with pytest.raises(AssertionError, match="rollouts off the policy"):
        train_ppo(
            policy,
            merged,
            [[1]],
            config,
            sampling=Sampling(0.5),
            reference_finish_rate=0,
            starts_at_base=True,
        )


@pytest.mark.parametrize("finish_rate, loses", [(0.9, 1.0), (0.1, 0.0)])
def test_a_run_punishes_cut_replies_only_where_the_reference_finishes(
    tiny_base: Base, finish_rate: float, loses: float
) -> None:
    policy = a_learner(tiny_base, size=0.0)
    policy.heads["reward"].weight.data.zero_()  # nothing counts but the rule
    first = a_run(policy, a_config(), reference_finish_rate=finish_rate).history[0]
    assert first["total_reward"] == pytest.approx(-loses * (1 - first["eos_rate"]), abs=1e-5)
    assert first["eos_rate"] < 1


# A task with a known answer

LEVER = 84


def pull(measure: Callable[..., Rollout]) -> Callable[..., Rollout]:
    """The real measurement with another score: how many tokens of the reply are LEVER, from -1 to 1."""

    def measured(policy: Policy, replies: list[Reply], **more: Any) -> Rollout:
        share = torch.tensor([2.0 * r.reply.count(LEVER) / 4 - 1 for r in replies])
        return replace(measure(policy, replies, **more), score=share, judge_score=share)

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
