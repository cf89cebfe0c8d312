"""What the policy says, with every number PPO needs.

Replies are sampled by the same code that serves them (sampler.py); everything that enters a loss is then
recomputed by the training copy in one forward pass a role, so that the first inner step has ratio 1.
A team of processes shares out the sampling and the reading; every member ends with the same whole rollout.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from chatbot.policy import Policy
from data.records import Sampling
from data.runfolder import JUDGE
from trainer.config import RefreshConfig
from trainer.correlation import correlation
from trainer.endings import Endings
from trainer.forward import (
    INVALID,
    Reply,
    ReplyForward,
    forward_replies,
    hash_seed,
    micro_batches,
    reply_draws,
    reply_logprobs,
    reply_scores,
    reply_values,
)
from trainer.sampler import Sampler
from trainer.team import SOLO, Team

SAMPLE_EVERY = 5
"""Updates between those whose replies are kept to be read."""
SAMPLES = 10


@dataclass(frozen=True)
class Roles:
    """Which adapter plays which part beside `policy`, `value` and `judge`."""

    members: tuple[str, ...]
    """The reward models of the ensemble."""
    reference: str | None = None
    """The anchor of the KL; None is the bare base."""
    start: str | None = None
    """Where the night's starting policy is kept; None where that says what the reference says."""


@dataclass(frozen=True)
class Task:
    """What a run of stage 3 is given and never changes."""

    sampler: Sampler
    """Writes the replies."""
    prompts: Sequence[list[int]]
    """Token ids, used in order, over and over."""
    config: RefreshConfig
    sampling: Sampling
    """How replies are drawn: from the whole distribution, at the temperature of the losses."""
    roles: Roles
    endings: Endings = field(default_factory=Endings)
    """How the replies of the reference end within the limit, and what being cut gains: PPO alone asks."""
    ptx: Sequence[Reply] = ()
    """Demonstrations to imitate besides, where `config.ptx` is not 0."""
    team: Team = SOLO
    """The processes that share the work."""

    def __post_init__(self) -> None:
        drawn = (self.sampling.temperature, self.sampling.top_p)
        assert drawn == (self.config.temperature, 1.0), "rollouts off the policy"


@dataclass(frozen=True)
class Rollout:
    """A batch of replies with what PPO needs of them; rows are replies, columns their tokens."""

    replies: list[Reply]
    mask: Tensor  # (B, T) bool
    logprob: Tensor  # (B, T) under the policy that sampled, as the training copy computes it
    untempered_logprob: Tensor  # (B, T) the same at temperature 1
    ref_logprob: Tensor  # (B, T)
    start_logprob: Tensor  # (B, T) under the night's starting policy
    value: Tensor  # (B, T)
    entropy: Tensor  # (B, T)
    scores: Tensor  # (M, B) by the members of the reward ensemble
    judge_score: Tensor  # (B,) by the judge, which never enters a gradient
    blank: Tensor  # (B,) bool: a person would see nothing

    @property
    def finished(self) -> Tensor:  # (B,) bool
        """Which replies end with their own end-of-turn token."""
        return torch.tensor([r.finished for r in self.replies], device=self.mask.device)


@dataclass(frozen=True)
class Batch:
    """A rollout and what the steps of its update learn from it, (B, T) each."""

    rollout: Rollout
    advantages: Tensor
    """Whitened over the whole batch."""
    returns: Tensor
    """As they are, in units of the score."""


def minibatches(config: RefreshConfig, shuffle: torch.Generator) -> list[list[int]]:
    """Row indices of each optimiser step of one update: every reply once an inner epoch, in a fresh order."""
    return [
        rows.tolist()
        for _ in range(config.inner_epochs)
        for rows in torch.randperm(config.prompts_per_update, generator=shuffle).split(config.minibatch)
    ]


def roll_out(policy: Policy, task: Task, update: int) -> tuple[Rollout, dict[str, float]]:
    """A fresh batch of replies by the policy as it is now, measured by every role; and the seconds it took.

    The place among the prompts follows from `update`, and so do the seeds.
    """
    started, config = time.monotonic(), task.config
    first = update * config.prompts_per_update
    replies = task.sampler.write(
        policy,
        [task.prompts[(first + i) % len(task.prompts)] for i in range(config.prompts_per_update)],
        sampling=task.sampling,
        seed=hash_seed(config.seed, update),
        team=task.team,
    )
    sampled = time.monotonic()
    rollout = measure_replies(
        policy, replies, temperature=config.temperature, roles=task.roles, team=task.team
    )
    return rollout, {
        "sampler_gap": sampler_gap(rollout),
        "seconds_sampling": sampled - started,
        "seconds_measuring": time.monotonic() - sampled,
    }


def sampler_gap(rollout: Rollout) -> float:
    """Mean |log pi_sampling(a) - log pi_training(a)| over the tokens, in nats at temperature 1.

    The two copies of the policy round differently. PPO learns from the training copy's numbers alone, so the
    gap enters no ratio; one that grows tells that the copies are no longer the same policy.
    """
    rows = [torch.tensor(reply.logprobs, device=rollout.mask.device) for reply in rollout.replies]
    sampled = pad_sequence(rows, batch_first=True, padding_value=INVALID)
    return float((sampled - rollout.untempered_logprob)[rollout.mask].abs().mean())


@torch.no_grad()
def measure_replies(
    policy: Policy,
    replies: list[Reply],
    *,
    temperature: float,
    roles: Roles,
    team: Team = SOLO,
) -> Rollout:
    """Pass `replies` through every role of `policy`: policy, reference, start, value, ensemble, judge."""
    mine = team.share(range(len(replies)))
    found: dict[int, dict[str, Tensor]] = {}
    for batch in micro_batches([len(replies[i].ids) for i in mine], policy.device):
        chosen = [mine[place] for place in batch]
        by_token, by_reply = _measure(policy, [replies[i] for i in chosen], temperature, roles)
        for row, i in enumerate(chosen):
            length = len(replies[i].reply)
            found[i] = {name: values[row, :length].cpu() for name, values in by_token.items()}
            found[i] |= {name: values[row].cpu() for name, values in by_reply.items()}
    rows = team.collect([found[i] for i in mine])

    def column(name: str) -> Tensor:
        return torch.stack([row[name] for row in rows]).to(policy.device)

    def table(name: str) -> Tensor:
        padded = pad_sequence([row[name] for row in rows], batch_first=True, padding_value=INVALID)
        return padded.to(policy.device)

    lengths = torch.tensor([len(r.reply) for r in replies], device=policy.device)
    ref_logprob = table("reference")
    return Rollout(
        replies=replies,
        mask=torch.arange(int(lengths.max()), device=policy.device) < lengths[:, None],
        logprob=table("policy"),
        untempered_logprob=table("untempered"),
        ref_logprob=ref_logprob,
        start_logprob=ref_logprob if roles.start is None else table("start"),
        value=table("value"),
        entropy=table("entropy"),
        scores=torch.stack([column(name) for name in roles.members]),
        judge_score=column(JUDGE),
        blank=torch.tensor([not policy.base.format.decode(r.reply).strip() for r in replies]),
    )


def _measure(
    policy: Policy, replies: list[Reply], temperature: float, roles: Roles
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every role says of one micro-batch: (B, T) for each token, (B,) for each reply."""

    def forward(name: str | None) -> ReplyForward:
        with policy.wear(name):
            return forward_replies(policy, replies)

    logprob, untempered, entropy = reply_draws(policy, forward("policy"), temperature)
    by_token = {
        "policy": logprob,
        "untempered": untempered,
        "entropy": entropy,
        "reference": reply_logprobs(policy, forward(roles.reference), temperature),
        "value": reply_values(policy.heads["value"], forward("value")),
    }
    if roles.start is not None:
        by_token["start"] = reply_logprobs(policy, forward(roles.start), temperature)
    return by_token, {name: reply_scores(policy, name, replies) for name in (*roles.members, JUDGE)}


def rollout_metrics(rollout: Rollout, score: Tensor, disagreement: Tensor) -> dict[str, float]:
    """What a batch of rollouts says of the policy that made it; `score` (B,) is what PPO is rewarded with."""
    mask, lengths = rollout.mask, rollout.mask.sum(1).float()
    kl = ((rollout.logprob - rollout.ref_logprob) * mask).sum(1)
    start_kl = ((rollout.logprob - rollout.start_logprob) * mask).sum(1)
    return {
        "score": float(score.mean()),
        "score_std": float(score.std(correction=0)),
        "disagreement": float(disagreement.mean()),
        "judge": float(rollout.judge_score.mean()),
        "score_judge_correlation": correlation(score, rollout.judge_score),
        "kl": float(kl.mean()),
        "kl_per_token": float(kl.sum() / mask.sum()),
        "start_kl": float(start_kl.mean()),
        "entropy": float(rollout.entropy[mask].mean()),
        "length": float(lengths.mean()),
        "empty_rate": float(rollout.blank.float().mean()),
        "eos_rate": float(rollout.finished.float().mean()),
        "distinct_2": distinct_2([r.reply for r in rollout.replies]),
        "reward_length_correlation": correlation(score, lengths),
    }


def value_metrics(rewards: Tensor, advantages: Tensor, returns: Tensor, rollout: Rollout) -> dict[str, float]:
    """How well the value function foresaw the returns. All (B, T)."""
    mask = rollout.mask
    error = (returns - rollout.value)[mask]
    spread = returns[mask].var(correction=0).clamp(min=1e-8)
    return {
        "total_reward": float(rewards.sum(1).mean()),
        "advantage_mean": float(advantages[mask].mean()),
        "advantage_std": float(advantages[mask].std(correction=0)),
        "explained_variance": float(1 - error.var(correction=0) / spread),
    }


def some_samples(rollout: Rollout, score: Tensor, update: int) -> dict[int, list[dict[str, Any]]]:
    """Now and then the first few replies of a batch, to be read by people: {update: replies}, or nothing."""
    if update % SAMPLE_EVERY:
        return {}
    judge = rollout.judge_score
    rows = enumerate(rollout.replies[:SAMPLES])
    found = [
        {"prompt": r.prompt, "reply": r.reply, "score": float(score[i]), "judge": float(judge[i])}
        for i, r in rows
    ]
    return {update: found}


def distinct_2(replies: list[list[int]]) -> float:
    """The share of different pairs of neighbouring tokens: low where replies repeat themselves."""
    pairs = [pair for reply in replies for pair in pairwise(reply)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0
