"""Stage 3, PPO: the algorithm, equations visible.

    reward    r_t = -beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t)) + [t is the last token] score(reply)
    advantage A_t = sum_l (gamma lambda)^l delta_{t+l},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    policy    L_pi = E max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),  rho = pi / pi_old
    value     L_V = 1/2 E max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2),  R = A + V_old

after InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), PPO (1707.06347), GAE (1506.02438) and "The N+
implementation details of RLHF with PPO" (2403.17031). Policy and value are two LoRA adapters on one
frozen base; the value starts as the reward model with its normalisation folded in; the reference is the
base itself. Dropout is off everywhere. Means are over real tokens: padding contributes exactly nothing.

Left out on purpose, for now: PPO-ptx, EMA, resuming a killed run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatbot.policy import Policy
from data.records import Sampling
from trainer.config import RefreshConfig
from trainer.guards import Guards
from trainer.rollout import (
    Rollout,
    forward_replies,
    hash_seed,
    reply_logprobs,
    roll_out,
)

# The equations


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of the whole batch."""
    return x[mask].mean()


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over the real tokens of the whole batch; padding becomes 0."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def apply_eos_rule(score: Tensor, finished: Tensor, reference_finish_rate: float) -> Tensor:
    """A reply without its end of turn scores min(score, 0) - 1: (B,) -> (B,).

    Only where the reference itself finishes at least 80 % of its replies within the limit; otherwise people
    ranked cut replies too, and the score stands as it is.
    """
    if reference_finish_rate < 0.8:
        return score
    return torch.where(finished, score, score.clamp(max=0.0) - 1.0)


def token_rewards(logprob: Tensor, ref_logprob: Tensor, score: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Per-token KL penalty, and the score once, at the reply's last token: (B, T).

    They sum to score - beta * KL of the reply.
    """
    rewards = -beta * (logprob - ref_logprob) * mask
    last = mask.long().sum(1) - 1
    rewards[torch.arange(len(score)), last] += score
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, backwards in time, (B, T) each; beyond a reply's end V is 0.

    Returns are advantages + values before any whitening.
    """
    values = values * mask
    advantage = torch.zeros_like(values[:, 0])
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        next_value = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(advantage)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, (advantages + values) * mask


def policy_loss(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate, and what tells how far the update went. All (B, T)."""
    log_ratio = (logprob - old_logprob).clamp(-20, 20)
    ratio = log_ratio.exp()
    pg_loss1 = -advantage * ratio
    pg_loss2 = -advantage * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.max(pg_loss1, pg_loss2), mask)
    with torch.no_grad():
        # Schulman's k3 estimator, http://joschu.net/blog/kl-approx.html; expm1 keeps small ratios exact.
        approx_kl = masked_mean(log_ratio.expm1() - log_ratio, mask)
        stats = {
            "approx_kl": float(approx_kl),
            "clip_fraction": float(masked_mean((pg_loss2 > pg_loss1).float(), mask)),
            "ratio_mean": float(masked_mean(ratio, mask)),
            "ratio_max": float(ratio[mask].max()),
        }
    return loss, stats


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Squared error, the larger of the plain one and that of a value kept near the old one."""
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((value - returns) ** 2, (clipped - returns) ** 2), mask)


def adapt_beta(beta: float, kl: float, target: float, replies: int, horizon: int = 200) -> float:
    """Ziegler's controller (arXiv 1909.08593, section 2.2): move beta towards the KL that is wanted."""
    if target == 0:
        return beta
    error = max(-0.2, min(0.2, kl / target - 1))
    return beta * (1 + error * replies / horizon)


# The loop


@dataclass
class PPOResult:
    """What a run of PPO leaves behind. The chosen weights are in the adapter `policy`."""

    best_update: int
    """The checkpoint the judge liked best, counted in updates done."""
    updates: int
    stopped: str | None
    """Why it stopped early, as a sentence."""
    history: list[dict[str, float]] = field(default_factory=list)


def train_ppo(
    policy: Policy,
    merged: PreTrainedModel,
    prompts: list[list[int]],
    config: RefreshConfig,
    *,
    sampling: Sampling,
    reference_finish_rate: float,
    starts_at_base: bool,
    winners_direction: float = 0.0,
    tell: Callable[[int, float, dict[str, float]], None] = lambda update, fraction, metrics: None,
    score_sign: float = 1.0,
) -> PPOResult:
    """Improve the adapter `policy` against the adapter `reward`, within reach of the base.

    `policy` must wear `policy`, `reward` and `judge`; `merged`, a plain model, is overwritten to sample from.
    `prompts` are token ids, used in order, over and over. With `starts_at_base` the adapter `policy` changes
    nothing yet. `winners_direction` is how much winning goes with length in the rankings.
    """
    assert (sampling.temperature, sampling.top_p) == (config.temperature, 1.0), "rollouts off the policy"
    start, optimiser = prepare_roles(policy, config, starts_at_base)
    beta, guards = config.beta, Guards(config, winners_direction)
    result = PPOResult(best_update=0, updates=0, stopped=None)
    best, best_judge = policy.keep("policy"), float("-inf")

    for update in range(config.updates + 1):
        # 1) What the policy says now, and what every role thinks of it.
        rollout, metrics = roll_out(policy, merged, prompts, config, sampling, update, start)
        metrics["beta"] = beta
        result.history.append(metrics)

        # 2) Keep the checkpoint the judge likes best; stop where a guard says so.
        result.stopped = guards.check_rollout(metrics)
        if result.stopped is None and score_sign * guards.judge > best_judge:
            best, best_judge, result.best_update = policy.keep("policy"), score_sign * guards.judge, update
        if result.stopped or update == config.updates:
            tell(update, 1.0, metrics)
            break

        # 3) Rewards, advantages, returns.
        score = apply_eos_rule(score_sign * rollout.score, rollout.finished, reference_finish_rate)
        rewards = token_rewards(rollout.logprob, rollout.ref_logprob, score, rollout.mask, beta)
        advantages, returns = gae(rewards, rollout.value, rollout.mask, config.gamma, config.lam)
        metrics |= value_metrics(rewards, advantages, returns, rollout)

        # 4) Several passes over the batch in minibatches.
        metrics |= improve(policy, optimiser, rollout, advantages, returns, config, update)

        # 5) Record, let the guards see the update, and steer beta.
        result.updates = update + 1
        tell(update, (update + 1) / config.updates, metrics)
        result.stopped = guards.check_update(metrics)
        if result.stopped:
            break
        beta = adapt_beta(beta, metrics["kl"], config.target_kl, len(rollout.replies))

    policy.bring_back("policy", best)
    for name in filter(None, ("value", start)):
        policy.drop(name)
    return result


# Its steps


def prepare_roles(
    policy: Policy, config: RefreshConfig, starts_at_base: bool
) -> tuple[str | None, torch.optim.Optimizer]:
    """The value as a copy of the reward, the night's start (None where that is the base), the optimiser."""
    policy.copy("reward", "value")
    policy.heads["value"].fold()
    start = None if starts_at_base else "start"
    if start:
        policy.copy("policy", start)
    moved = [parameter for name in ("policy", "value") for parameter in policy.parameters(name)]
    return start, torch.optim.AdamW(moved, lr=config.ppo_lr, eps=1e-5, weight_decay=0.0)


def improve(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: RefreshConfig,
    update: int,
) -> dict[str, float]:
    """All optimiser steps of one update; their metrics are averaged. The learning rate rises at first."""
    started = time.monotonic()
    advantages = whiten(advantages, rollout.mask)
    for group in optimiser.param_groups:
        group["lr"] = config.ppo_lr * min(1.0, (update + 1) / config.warmup_updates)
    steps = [
        take_step(policy, optimiser, rollout, advantages, returns, rows, config)
        for rows in minibatches(config, update, policy.device)
    ]
    metrics = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    metrics["ratio_max"] = max(step["ratio_max"] for step in steps)
    metrics["first_ratio_error"] = abs(steps[0]["ratio_mean"] - 1)
    metrics["seconds_training"] = time.monotonic() - started
    return metrics


def minibatches(config: RefreshConfig, update: int, device: torch.device) -> list[Tensor]:
    """Row indices of each optimiser step of one update: every reply once an inner epoch, in a fresh order."""
    generator = torch.Generator().manual_seed(hash_seed(config.seed + 1, update))
    return [
        rows.to(device)
        for _ in range(config.inner_epochs)
        for rows in torch.randperm(config.prompts_per_update, generator=generator).split(config.minibatch)
    ]


def take_step(
    policy: Policy,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    rows: Tensor,
    config: RefreshConfig,
) -> dict[str, float]:
    """One optimiser step of policy and value on the replies `rows`."""
    mb_replies = [rollout.replies[i] for i in rows.tolist()]
    width = max(len(r.reply) for r in mb_replies)
    mb_mask = rollout.mask[rows, :width]
    optimiser.zero_grad(set_to_none=True)

    with policy.wear("policy"):
        forward = forward_replies(policy, mb_replies)
        logprob = reply_logprobs(policy.logits, forward, config.temperature)
        pg_loss, stats = policy_loss(
            logprob, rollout.logprob[rows, :width], advantages[rows, :width], mb_mask, config.clip
        )
        pg_loss.backward()
    with policy.wear("value"):
        value = policy.heads["value"](forward_replies(policy, mb_replies).hidden) * mb_mask
        v_loss = value_loss(value, rollout.value[rows, :width], returns[rows, :width], mb_mask, config.clip)
        (config.value_coefficient * v_loss).backward()

    norms = {
        f"grad_norm_{name}": float(torch.nn.utils.clip_grad_norm_(policy.parameters(name), 1.0))
        for name in ("policy", "value")
    }
    optimiser.step()
    return {**stats, **norms, "policy_loss": float(pg_loss.detach()), "value_loss": float(v_loss.detach())}


def value_metrics(rewards: Tensor, advantages: Tensor, returns: Tensor, rollout: Rollout) -> dict[str, float]:
    """How well the value function foresaw the returns."""
    mask = rollout.mask
    error = (returns - rollout.value)[mask]
    spread = returns[mask].var(correction=0).clamp(min=1e-8)
    return {
        "total_reward": float(rewards.sum(1).mean()),
        "advantage_mean": float(masked_mean(advantages, mask)),
        "advantage_std": float(advantages[mask].std(correction=0)),
        "explained_variance": float(1 - error.var(correction=0) / spread),
    }
