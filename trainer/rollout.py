"""What the policy says, with every number PPO needs.

Replies are sampled from a merged copy by the same code that serves them; everything that enters a loss is
then recomputed by the training copy in one forward pass a role, so that the first inner step has ratio 1.
Sequences are sorted by length into micro-batches; logits are computed at reply positions only.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from chatbot.decoding import Decoding, Row
from chatbot.models import TokenBatch, logits_of
from chatbot.policy import Policy
from data.records import Sampling
from trainer.config import RefreshConfig

INVALID = 0.0
"""What stands at padded positions; every mean goes through a mask."""


@dataclass(frozen=True)
class Reply:
    """A prompt and a sampled reply to it, as token ids."""

    prompt: list[int]
    reply: list[int]
    finished: bool
    """It ends with the end-of-turn token."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.reply


def sample_replies(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    end_of_turn: int,
    seed: int,
    rows: int = 32,
    tell: Callable[[float], None] = lambda fraction: None,
) -> list[Reply]:
    """One reply to each prompt from a merged model, `rows` at a time; `tell` hears the fraction done."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: dict[int, Reply] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        group = [Row(hash_seed(seed, i)) for i in chosen]
        chosen_prompts = [prompts[i] for i in chosen]
        decoding = Decoding(model, chosen_prompts, [[r] for r in group], [sampling] * len(group), end_of_turn)
        while not decoding.is_finished:
            decoding.step()
        for i, row in zip(chosen, group, strict=True):
            replies[i] = Reply(prompts[i], row.token_ids, row.finish_reason == "stop")
        tell(len(replies) / len(prompts))
    return [replies[i] for i in range(len(prompts))]


def hash_seed(seed: int, index: int) -> int:
    """A seed of its own for each reply of a run."""
    return (seed * 1_000_003 + index * 7_919 + 12_345) % (2**31)


def micro_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in order of length, cut so that a padded micro-batch holds at most `tokens`."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True)
class ReplyForward:
    """The hidden states from which reply tokens are predicted, and those tokens."""

    hidden: Tensor  # (B, T, D): position t predicts reply token t, and its value is V(s_t)
    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    last: Tensor  # (B, D): at the reply's last token, where a score is read


def forward_replies(policy: Policy, replies: Sequence[Reply], left_pad: int | None = None) -> ReplyForward:
    """One forward pass through what `policy` wears, cut to the replies."""
    batch = TokenBatch.of([r.ids for r in replies], policy.device, left_pad)
    hidden = policy.hidden(batch)
    device = policy.device
    lengths = torch.tensor([len(r.reply) for r in replies], device=device)
    starts = torch.tensor([len(r.prompt) for r in replies], device=device)
    if left_pad is not None:
        starts = starts + batch.ids.shape[1] - torch.tensor([len(r.ids) for r in replies], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    mask = steps < lengths[:, None]
    at = (starts[:, None] + steps).clamp(max=batch.ids.shape[1] - 1)
    rows = torch.arange(len(replies), device=device)
    return ReplyForward(
        hidden=hidden[rows[:, None], at - 1],
        tokens=batch.ids[rows[:, None], at],
        mask=mask,
        last=hidden[rows, starts + lengths - 1],
    )


def reply_logprobs(logits: Callable[[Tensor], Tensor], forward: ReplyForward, temperature: float) -> Tensor:
    """Log-probability of each reply token at `temperature`: (B, T), float32."""
    scaled = logits(forward.hidden[forward.mask]) / temperature  # (N, V), real tokens only
    return _spread(-F.cross_entropy(scaled, forward.tokens[forward.mask], reduction="none"), forward.mask)


def reply_entropy(logits: Callable[[Tensor], Tensor], forward: ReplyForward, temperature: float) -> Tensor:
    """Entropy in nats of the distribution each reply token was drawn from: (B, T), float32."""
    logprobs = torch.log_softmax(logits(forward.hidden[forward.mask]) / temperature, dim=-1)
    return _spread(-(logprobs.exp() * logprobs).sum(-1), forward.mask)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Put one value a real token, (N,), where the tokens stand, (B, T)."""
    return torch.full(mask.shape, INVALID, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def logprobs_of(
    model: PreTrainedModel, prompts: Sequence[list[int]], replies: Sequence[list[int]], temperature: float
) -> list[Tensor]:
    """Log-probabilities of the tokens of `replies` under a merged model, (len(reply),) each."""
    out: dict[int, Tensor] = {}
    lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]
    for rows in micro_batches(lengths, tokens=1024):
        batch = TokenBatch.of([prompts[i] + replies[i] for i in rows], model.device)
        hidden = model.get_decoder()(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        for i, ids, states in zip(rows, batch.ids, hidden, strict=True):
            first, end = len(prompts[i]), lengths[i]
            logprobs = torch.log_softmax(logits_of(model, states[first - 1 : end - 1]) / temperature, dim=-1)
            out[i] = logprobs.gather(1, ids[first:end, None])[:, 0].cpu()
    return [out[i] for i in range(len(lengths))]


@dataclass(frozen=True)
class Rollout:
    """A batch of replies with what PPO needs of them; rows are replies, columns their tokens."""

    replies: list[Reply]
    mask: Tensor  # (B, T) bool
    logprob: Tensor  # (B, T) under the policy that sampled, as the training copy computes it
    ref_logprob: Tensor  # (B, T)
    start_logprob: Tensor  # (B, T) under the night's starting policy
    value: Tensor  # (B, T)
    entropy: Tensor  # (B, T)
    score: Tensor  # (B,) by the reward model
    judge_score: Tensor  # (B,) by the judge, which never enters a gradient

    @property
    def finished(self) -> Tensor:  # (B,) bool
        """Which replies end with their own end-of-turn token."""
        return torch.tensor([r.finished for r in self.replies], device=self.mask.device)


@torch.no_grad()
def measure_replies(
    policy: Policy, replies: list[Reply], *, temperature: float, start: str | None, tokens: int = 1024
) -> Rollout:
    """Pass `replies` through every role of `policy`: policy, reference, start, value, reward, judge."""
    count, width = len(replies), max(len(r.reply) for r in replies)
    device = policy.device
    mask = torch.zeros(count, width, dtype=torch.bool, device=device)
    columns = {
        n: torch.zeros(count, width, device=device) for n in ("logprob", "ref", "start", "value", "entropy")
    }
    scores = {name: torch.zeros(count, device=device) for name in ("reward", "judge")}
    for batch in micro_batches([len(r.ids) for r in replies], tokens):
        rows = torch.tensor(batch, device=device)
        chosen = [replies[i] for i in batch]

        def put(name: str, values: Tensor, rows: Tensor = rows) -> None:
            columns[name][rows, : values.shape[1]] = values

        with policy.wear("policy"):
            forward = forward_replies(policy, chosen)
            logits = policy.logits(forward.hidden[forward.mask])

            def once(_: Tensor, logits: Tensor = logits) -> Tensor:
                return logits

            logprob = reply_logprobs(once, forward, temperature)
            entropy = reply_entropy(once, forward, temperature)
        mask[rows, : forward.mask.shape[1]] = forward.mask
        put("logprob", logprob)
        put("entropy", entropy)
        with policy.wear(None):
            put("ref", reply_logprobs(policy.logits, forward_replies(policy, chosen), temperature))
        if start is not None:
            with policy.wear(start):
                put(
                    "start",
                    reply_logprobs(policy.logits, forward_replies(policy, chosen), temperature),
                )
        with policy.wear("value"):
            forward = forward_replies(policy, chosen)
            put("value", policy.heads["value"](forward.hidden) * forward.mask)
        for name, column in scores.items():
            with policy.wear(name):
                column[rows] = policy.heads[name](forward_replies(policy, chosen).last)
    return Rollout(
        replies=replies,
        mask=mask,
        logprob=columns["logprob"],
        ref_logprob=columns["ref"],
        start_logprob=columns["start"] if start is not None else columns["ref"],
        value=columns["value"],
        entropy=columns["entropy"],
        score=scores["reward"],
        judge_score=scores["judge"],
    )


def roll_out(
    policy: Policy,
    merged: PreTrainedModel,
    prompts: list[list[int]],
    config: RefreshConfig,
    sampling: Sampling,
    update: int,
    start: str | None,
) -> tuple[Rollout, dict[str, float]]:
    """A fresh batch of replies by the policy as it is now, measured by every role."""
    started = time.monotonic()
    policy.write_merged("policy", merged)
    first = update * config.prompts_per_update
    replies = sample_replies(
        merged,
        [prompts[(first + i) % len(prompts)] for i in range(config.prompts_per_update)],
        sampling=sampling,
        end_of_turn=policy.base.format.end_of_turn,
        seed=hash_seed(config.seed, update),
    )
    sampled = time.monotonic()
    rollout = measure_replies(policy, replies, temperature=config.temperature, start=start)
    metrics = rollout_metrics(rollout)
    metrics["seconds_sampling"] = sampled - started
    metrics["seconds_measuring"] = time.monotonic() - sampled
    return rollout, metrics


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """What a batch of rollouts says of the policy that made it."""
    mask, lengths = rollout.mask, rollout.mask.sum(1).float()
    kl = ((rollout.logprob - rollout.ref_logprob) * mask).sum(1)
    start_kl = ((rollout.logprob - rollout.start_logprob) * mask).sum(1)
    pairs = torch.stack([rollout.score, lengths])
    return {
        "score": float(rollout.score.mean()),
        "score_std": float(rollout.score.std(correction=0)),
        "judge": float(rollout.judge_score.mean()),
        "kl": float(kl.mean()),
        "kl_per_token": float(kl.sum() / mask.sum()),
        "start_kl": float(start_kl.mean()),
        "entropy": float(rollout.entropy[mask].mean()),
        "length": float(lengths.mean()),
        "empty_rate": sum(len(r.reply) == r.finished for r in rollout.replies) / len(rollout.replies),
        "eos_rate": float(rollout.finished.float().mean()),
        "distinct_2": distinct_2([r.reply for r in rollout.replies]),
        "reward_length_correlation": float(torch.corrcoef(pairs)[0, 1].nan_to_num()),
    }


def distinct_2(replies: list[list[int]]) -> float:
    """The share of different pairs of neighbouring tokens: low where replies repeat themselves."""
    pairs = [pair for reply in replies for pair in pairwise(reply)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0
