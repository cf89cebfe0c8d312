"""Stage 3, PPO: the algorithm, equations visible.

    score     s = mean_m r_m - pessimism * std_m r_m over the members r_m of the reward ensemble
    reward    r_t = -beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t)) + [t is the last token] s
    advantage A_t = sum_l (gamma lambda)^l delta_{t+l},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    policy    L_pi = E max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),  rho = pi / pi_old
    value     L_V = 1/2 E max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2),  R = A + V_old
    ptx       L_ptx = -E log pi(demonstration), added where it is asked for

after InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), PPO (1707.06347), GAE (1506.02438) and "The N+
implementation details of RLHF with PPO" (2403.17031). Policy and value are two LoRA adapters on one frozen
base, without dropout; the reference never moves. What is kept is the checkpoint that the judge likes best.
"""

import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from chatbot.policy import Policy
from trainer.checkpoint import Checkpoints, PPOState, fingerprint_of
from trainer.endings import Endings
from trainer.forward import Reply, forward_replies, hash_seed, micro_batches, reply_logprobs, reply_values
from trainer.guards import Guards
from trainer.members import pessimistic
from trainer.ptx import add_ptx, pick_examples
from trainer.result import PolicyResult, notes_on
from trainer.rollout import (
    Batch,
    Task,
    minibatches,
    roll_out,
    rollout_metrics,
    some_samples,
    value_metrics,
)
from trainer.telling import Step, nobody

_SUMMED = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "value_clip_fraction", "ratio_mean")

# The equations


def masked_mean(x: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
    """Mean over the real tokens; with `count`, the part of it that these tokens, of `count`, contribute."""
    return x[mask].sum() / (count or int(mask.sum()))


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over the real tokens of the whole batch; padding becomes 0."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def apply_eos_rule(score: Tensor, finished: Tensor, endings: Endings) -> Tensor:
    """A reply without its end of turn scores min(score, 0) - 1, where the reference finishes 80 %: (B,).

    Elsewhere people ranked cut replies too: these keep their score. One that ends gets `cut_gain + rate`
    more, at its end: a penalty at the limit would train the words that happen to stand there.
    """
    if endings.is_usual:
        return torch.where(finished, score, score.clamp(max=0.0) - 1.0)
    return torch.where(finished, score + endings.cut_gain + endings.rate, score)


def token_rewards(logprob: Tensor, ref_logprob: Tensor, score: Tensor, mask: Tensor, beta: float) -> Tensor:
    """KL penalty a token, and the score once, at the last: (B, T), together score - beta * KL of a reply."""
    rewards = -beta * (logprob - ref_logprob) * mask
    last = mask.long().sum(1) - 1
    rewards[torch.arange(len(score), device=score.device), last] += score
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages, not yet whitened, and returns = advantages + values: (B, T) each. V is 0 past the end."""
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
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip: float,
    count: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate, and what tells how far the update went. All (B, T)."""
    log_ratio = (logprob - old_logprob).clamp(-20, 20)
    ratio = log_ratio.exp()
    pg_loss1 = -advantage * ratio
    pg_loss2 = -advantage * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.max(pg_loss1, pg_loss2), mask, count)
    with torch.no_grad():
        # Schulman's k3 estimator, http://joschu.net/blog/kl-approx.html; expm1 keeps small ratios exact.
        approx_kl = masked_mean(log_ratio.expm1() - log_ratio, mask, count)
        stats = {
            "policy_loss": float(loss),
            "approx_kl": float(approx_kl),
            "clip_fraction": float(masked_mean((pg_loss2 > pg_loss1).float(), mask, count)),
            "ratio_mean": float(masked_mean(ratio, mask, count)),
            "ratio_max": float(ratio[mask].max()),
        }
    return loss, stats


def value_loss(
    value: Tensor, old_value: Tensor, returns: Tensor, mask: Tensor, clip: float, count: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Squared error, the larger of the plain one and that of a value kept near the old one. All (B, T)."""
    moved = value - old_value
    v_loss1, v_loss2 = (value - returns) ** 2, (old_value + moved.clamp(-clip, clip) - returns) ** 2
    loss = 0.5 * masked_mean(torch.max(v_loss1, v_loss2), mask, count)
    clip_fraction = masked_mean(((moved.abs() > clip) & (v_loss2 > v_loss1)).float(), mask, count)
    return loss, {"value_loss": float(loss.detach()), "value_clip_fraction": float(clip_fraction)}


def adapt_beta(beta: float, kl: float, target: float) -> float:
    """Ziegler's controller (arXiv 1909.08593, section 2.2): move beta towards the KL that is wanted. Its gain
    is 1 instead of 0.1, since a night has tens of updates, not thousands."""
    return beta * (1 + max(-0.2, min(0.2, kl / target - 1))) if target else beta


# The loop


def train_ppo(
    policy: Policy,
    task: Task,
    *,
    length_preference: float = 0.0,
    checkpoints: Path | None = None,
    tell: Step = nobody,
) -> PolicyResult:
    """Improve the adapter `policy` against the reward models of `task.roles`, within reach of the reference.

    `policy` must hold the adapters `policy` and `judge`, the members of the ensemble and the reference.
    length_preference: how much winning goes with length in the rankings.
    checkpoints: a folder; a run that was killed goes on from the newest one there, by itself.
    """
    store = Checkpoints(checkpoints, fingerprint_of(policy, task) if checkpoints else "", task.team)
    state = begin(policy, task, length_preference)
    store.go_on(state)
    for update in range(state.result.updates, task.config.updates + 1):
        with policy.remembering():
            metrics = one_update(state, task, update)
        is_over = bool(state.result.stopped) or update == task.config.updates
        tell(update, 1.0 if is_over else (update + 1) / task.config.updates, metrics)
        if is_over:
            break
        store.save(state)
    policy.bring_back("policy", state.best)
    for name in filter(None, ("value", task.roles.start)):
        policy.drop(name)
    state.result.notes += notes_on(state.result, state.endings)
    return state.result


def begin(policy: Policy, task: Task, length_preference: float) -> PPOState:
    """The value starts as the first reward model, normalisation folded in; only it and the policy move."""
    policy.copy(task.roles.members[0], "value")
    policy.heads["value"].fold()
    if task.roles.start:
        policy.copy("policy", task.roles.start)
    moved = [parameter for name in ("policy", "value") for parameter in policy.parameters(name)]
    optimiser = torch.optim.AdamW(moved, lr=task.config.ppo_lr, eps=1e-5, weight_decay=0.0)
    guards = Guards(task.config, length_preference, None if task.roles.start else task.endings)
    return PPOState(policy, optimiser, guards, task.config.beta, policy.keep("policy"), task.endings)


def one_update(state: PPOState, task: Task, update: int) -> dict[str, float]:
    """Roll out, look, learn. The last update only looks, and so does one that a guard stops."""
    policy, config, result = state.policy, task.config, state.result

    # 1) What the policy says now, and what every role thinks of it.
    rollout, metrics = roll_out(policy, task, update)
    score, disagreement = pessimistic(rollout.scores, config.pessimism)
    metrics |= rollout_metrics(rollout, score, disagreement) | {"beta": state.beta}
    result.history.append(metrics)
    result.samples |= some_samples(rollout, score, update)

    # 2) Keep the checkpoint the judge likes best; stop where a guard says so.
    result.stopped = state.guards.check_rollout(metrics)
    if result.stopped:
        return metrics
    liked = state.guards.judge
    if liked > state.best_judge and metrics["start_kl"] <= config.max_kl and state.guards.keeps_endings:
        state.best = state.average or policy.keep("policy")
        state.best_judge, result.best_update = liked, update
    if update == config.updates:
        return metrics

    # 3) Rewards, advantages, returns.
    state.endings = state.endings.after(rollout.finished.tolist(), score.tolist(), state.guards.more_endings)
    score = apply_eos_rule(score, rollout.finished, state.endings)
    rewards = token_rewards(rollout.logprob, rollout.ref_logprob, score, rollout.mask, state.beta)
    advantages, returns = gae(rewards, rollout.value, rollout.mask, config.gamma, config.lam)
    metrics |= value_metrics(rewards, advantages, returns, rollout) | {"cut_gain": state.endings.cut_gain}

    # 4) Several passes over the batch in minibatches.
    metrics |= improve(state, task, Batch(rollout, whiten(advantages, rollout.mask), returns), update)
    result.updates = update + 1
    state.average_in(config.ema)

    # 5) Let the guards see the update, and steer beta.
    result.stopped = state.guards.check_update(metrics)
    state.beta = adapt_beta(state.beta, metrics["kl"], config.target_kl)
    return metrics


def improve(state: PPOState, task: Task, batch: Batch, update: int) -> dict[str, float]:
    """All optimiser steps of one update; means, of approx_kl and clip_fraction over the last epoch only."""
    started, config = time.monotonic(), task.config
    rate = config.ppo_lr * min(1.0, (update + 1) / config.warmup_updates)  # rises at first
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    shuffle = torch.Generator().manual_seed(hash_seed(config.seed + 1, update))
    steps = [
        take_step(state, task, batch, rows, pick_examples(task.ptx, config, shuffle))
        for rows in minibatches(config, shuffle)
    ]
    last = steps[-(len(steps) // config.inner_epochs) :]
    metrics = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    metrics |= {name: sum(step[name] for step in last) / len(last) for name in ("approx_kl", "clip_fraction")}
    metrics |= {"ratio_max": max(s["ratio_max"] for s in steps), "learning_rate": rate}
    metrics["first_ratio_error"] = abs(steps[0]["ratio_mean"] - 1)
    return metrics | {"seconds_training": time.monotonic() - started}


def take_step(
    state: PPOState, task: Task, batch: Batch, rows: list[int], examples: list[Reply]
) -> dict[str, float]:
    """One optimiser step of policy and value on the replies `rows`; each member of a team takes a share."""
    policy, team, replies = state.policy, task.team, batch.rollout.replies
    count, mine = sum(len(replies[i].reply) for i in rows), team.share(rows)
    parts = micro_batches([len(replies[i].ids) for i in mine], policy.device)
    state.optimiser.zero_grad(set_to_none=True)
    found = [add_gradients(policy, batch, [mine[place] for place in part], task, count) for part in parts]
    moved = {name: policy.parameters(name) for name in ("policy", "value")}
    norms = {f"grad_norm_{name}": team.summed_norm(parameters) for name, parameters in moved.items()}
    if examples:
        norms |= add_ptx(policy, examples, task.config.ptx, team)
    for parameters in moved.values():
        clip_grad_norm_(parameters, 1.0)
    state.optimiser.step()
    ratio_max = max(team.collect([max((stats["ratio_max"] for stats in found), default=0.0)]))
    sums = team.sum([sum(stats[name] for stats in found) for name in _SUMMED])
    return dict(zip(_SUMMED, sums, strict=True)) | norms | {"ratio_max": ratio_max}


def add_gradients(policy: Policy, batch: Batch, rows: list[int], task: Task, count: int) -> dict[str, float]:
    """Both losses of the replies `rows`, whose step has `count` tokens: their gradients are added up."""
    old, mb_replies = batch.rollout, [batch.rollout.replies[i] for i in rows]
    mb = (rows, slice(max(len(r.reply) for r in mb_replies)))
    mb_mask, clip = old.mask[mb], task.config.clip
    with policy.wear("policy"):
        forward = forward_replies(policy, mb_replies)
        logprob = reply_logprobs(policy, forward, task.config.temperature)
        pg_loss, pg_stats = policy_loss(logprob, old.logprob[mb], batch.advantages[mb], mb_mask, clip, count)
        pg_loss.backward()
    with policy.wear("value"):
        value = reply_values(policy.heads["value"], forward_replies(policy, mb_replies))
        v_loss, v_stats = value_loss(value, old.value[mb], batch.returns[mb], mb_mask, clip, count)
        (task.config.value_coefficient * v_loss).backward()
    return pg_stats | v_stats
