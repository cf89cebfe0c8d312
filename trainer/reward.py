"""Stage 2, the reward model: rankings -> a scalar judge, and a report that says how good it is.

    L = mean over rankings of  mean over pairs (i, j) of  -q log s(d) - (1 - q) log s(-d),   d = r_i - r_j

with q = 1 where i was put above j and 1/2 for a tie (InstructGPT 3.5, arXiv 2203.02155; ties as soft labels).
Each reply is scored once and all replies of a ranking stay in one step, so a ranking counts as one data
point whatever its K. `all_bad` gives no pair: its replies are pushed below the batch's mean.

Left out on purpose, for now: the ensemble, warm starts from last night, calibration plots.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbot.chatformat import ChatFormat
from chatbot.models import TokenBatch
from chatbot.policy import Policy
from data.comparisons import RankedTurn
from data.errors import Refused
from trainer.config import RefreshConfig
from trainer.rollout import Reply, micro_batches

_ALL_BAD_WEIGHT = 0.1
_MAX_PROMPT_TOKENS = 1024

Tell = Callable[[int, float, dict[str, float]], None]


@dataclass(frozen=True)
class TokenisedTurn:
    """A ranking ready for the model: K sequences and the pairs among them."""

    turn: RankedTurn
    sequences: list[list[int]]
    pairs: list[tuple[int, int, float]]

    @property
    def tokens(self) -> int:
        return len(self.sequences) * max(len(s) for s in self.sequences)


def tokenise(turns: Sequence[RankedTurn], chat: ChatFormat) -> list[TokenisedTurn]:
    """Token ids by the one chat format; prompts longer than 1,024 tokens lose their oldest turns."""
    out = []
    for turn in turns:
        prompt = chat.fit(turn.prompt, _MAX_PROMPT_TOKENS).ids
        sequences = [
            prompt + chat.encode_reply(reply, finished=not cut)
            for reply, cut in zip(turn.replies, turn.cut, strict=True)
        ]
        out.append(TokenisedTurn(turn, sequences, turn.pairs()))
    return out


def ranking_loss(scores: Tensor, pairs: Sequence[tuple[int, int, float]]) -> Tensor:
    """The K-way loss of one ranking: scores (K,), pairs (i, j, q) -> scalar, the mean over its pairs."""
    i, j = (torch.tensor([pair[side] for pair in pairs], device=scores.device) for side in (0, 1))
    q = torch.tensor([pair[2] for pair in pairs], device=scores.device)
    d = scores[i] - scores[j]
    return -(q * F.logsigmoid(d) + (1 - q) * F.logsigmoid(-d)).mean()


def all_bad_loss(scores: Tensor, reference_mean: Tensor) -> Tensor:
    """Push every reply of an `all_bad` turn below the (detached) mean score of the others."""
    return _ALL_BAD_WEIGHT * F.softplus(scores - reference_mean.detach()).mean()


def train_reward(
    policy: Policy, name: str, turns: Sequence[RankedTurn], config: RefreshConfig, *, seed: int, tell: Tell
) -> None:
    """Train a fresh adapter with a scalar head, called `name`, on `turns`; `tell` hears loss and accuracy.

    Raises Refused where the turns hold nothing to learn from.
    """
    data = [t for t in tokenise(turns, policy.base.format) if t.pairs or t.turn.kind == "all_bad"]
    if not any(q != 0.5 for t in data for _, _, q in t.pairs):
        raise Refused("The rankings hold no preference, only ties - rank some replies above others.")
    policy.add(name, seed=seed, rank=config.rank, with_head=True)
    parameters = policy.parameters(name)
    optimiser = torch.optim.AdamW(parameters, lr=config.reward_lr, weight_decay=0.0)
    epochs = passes(len(data), config)
    steps = math.ceil(len(data) / config.reward_batch) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_up_and_decay(step, steps))
    shuffle, step = random.Random(seed), 0
    for _ in range(epochs):
        shuffle.shuffle(data)
        for start in range(0, len(data), config.reward_batch):
            optimiser.zero_grad(set_to_none=True)
            metrics = _accumulate(policy, name, data[start : start + config.reward_batch])
            if not math.isfinite(metrics["loss"]):
                raise Refused(f"The loss of {name!r} is not finite - lower --reward-lr.")
            metrics["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            optimiser.step()
            schedule.step()
            step += 1
            tell(step, step / steps, metrics)


def passes(rankings: int, config: RefreshConfig) -> int:
    """How often to go over `rankings`: more often over few, which are too few steps otherwise."""
    wanted = math.ceil(config.reward_steps / math.ceil(rankings / config.reward_batch))
    return min(max(config.reward_epochs, wanted), 2 * config.reward_epochs)


def _warm_up_and_decay(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    return (step + 1) / rise if step < rise else max(0.05, (steps - step) / (steps - rise))


def _accumulate(
    policy: Policy, name: str, batch: list[TokenisedTurn], tokens: int = 8192
) -> dict[str, float]:
    """Gradients of the weighted mean loss over `batch`, a few whole rankings at a time."""
    weight = sum(t.turn.weight for t in batch)
    total, right, decided = 0.0, 0.0, 0
    mean = torch.zeros((), device=policy.device)
    for chosen in micro_batches([t.tokens for t in batch], tokens):
        group = [batch[i] for i in chosen]
        scores = policy.score(name, TokenBatch.of([s for t in group for s in t.sequences], policy.device))
        parts = scores.split([len(t.sequences) for t in group])
        ranked = [part for part, t in zip(parts, group, strict=True) if t.pairs]
        mean = torch.cat(ranked).mean() if ranked else mean
        losses = [
            (ranking_loss(part, t.pairs) if t.pairs else all_bad_loss(part, mean)) * t.turn.weight
            for part, t in zip(parts, group, strict=True)
        ]
        loss = torch.stack(losses).sum() / weight
        loss.backward()
        total += float(loss.detach())
        for part, t in zip(parts, group, strict=True):
            hits = _hits(part.tolist(), t.pairs)
            right, decided = right + sum(hits), decided + len(hits)
    return {"loss": total, "accuracy": right / max(decided, 1)}


def _hits(scores: Sequence[float], pairs: Sequence[tuple[int, int, float]]) -> list[float]:
    """1, 0 or (equal scores) 1/2 for each decided pair."""
    return [
        0.5 if scores[i] == scores[j] else float((scores[i] > scores[j]) == (q == 1.0))
        for i, j, q in pairs
        if q != 0.5
    ]


@torch.no_grad()
def score_sequences(
    policy: Policy, name: str, sequences: Sequence[list[int]], tokens: int = 4096
) -> list[float]:
    """The normalised score of each sequence of token ids, in order."""
    scores = [0.0] * len(sequences)
    for batch in micro_batches([len(s) for s in sequences], tokens):
        values = policy.score(name, TokenBatch.of([sequences[i] for i in batch], policy.device)).tolist()
        for i, value in zip(batch, values, strict=True):
            scores[i] = value
    return scores


def normalise(policy: Policy, name: str, reference: Sequence[Reply]) -> None:
    """Shift and scale `name` so that replies of the reference score 0 on average with a spread of 1."""
    if len(reference) < 2:
        raise Refused("One reply of the reference has no spread - give at least two prompts to practise on.")
    head = policy.heads[name]
    scores = torch.tensor(score_sequences(policy, name, [r.ids for r in reference]))
    head.mean.add_(scores.mean() * head.std)
    head.std.mul_(scores.std().clamp(min=1e-3))


def evaluate(policy: Policy, name: str, turns: Sequence[RankedTurn], *, seed: int = 0) -> dict[str, Any]:
    """How well `name` foretells rankings it was not trained on, beside two baselines on the same pairs.

    `accuracy` over decided pairs with a 95 % interval bootstrapped by conversation (a ranking's pairs are
    not independent), Kendall's tau over decided pairs, and the correlation of score with length.
    """
    data = [t for t in tokenise(turns, policy.base.format) if t.pairs]
    flat = score_sequences(policy, name, [s for t in data for s in t.sequences])
    by_conversation: dict[str, list[tuple[float, float, float]]] = {}
    lengths: list[float] = []
    at = 0
    for t in data:
        scores = flat[at : at + len(t.sequences)]
        at += len(t.sequences)
        sizes = [float(len(reply)) for reply in t.turn.replies]
        firsts = [-float(shown) for shown in t.turn.shown]
        lengths += sizes
        hits = zip(_hits(scores, t.pairs), _hits(sizes, t.pairs), _hits(firsts, t.pairs), strict=True)
        if found := list(hits):  # a conversation of ties alone decides nothing
            by_conversation.setdefault(t.turn.conversation_id, []).extend(found)
    pairs = [hit for hits in by_conversation.values() for hit in hits]
    if not pairs:
        return {"pairs": 0, "accuracy": 0.5, "accuracy_interval": [0.0, 1.0], "ties": float(bool(data))}
    accuracy, longest, first = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return {
        "pairs": len(pairs),
        "rankings": len(data),
        "ties": 1 - len(pairs) / sum(len(t.pairs) for t in data),
        "accuracy": accuracy,
        "accuracy_interval": bootstrap_by_group(
            [[h[0] for h in hits] for hits in by_conversation.values()], seed
        ),
        "always_longest": longest,
        "always_first_shown": first,
        "kendall_tau": 2 * accuracy - 1,
        "score_length_correlation": float(torch.corrcoef(torch.tensor([flat, lengths]))[0, 1].nan_to_num()),
    }


def bootstrap_by_group(groups: Sequence[Sequence[float]], seed: int, samples: int = 1000) -> list[float]:
    """A 95 % interval of the mean, resampling whole groups; Wilson's too where there are few groups.

    A handful of groups that all agree would bootstrap to an interval of no width, which nobody should trust.
    """
    sums, counts = [sum(group) for group in groups], [len(group) for group in groups]
    pick = random.Random(seed)
    means = []
    for _ in range(samples):
        chosen = pick.choices(range(len(groups)), k=len(groups))
        means.append(sum(sums[i] for i in chosen) / sum(counts[i] for i in chosen))
    means.sort()
    low, high = means[int(0.025 * samples)], means[int(0.975 * samples) - 1]
    wilson = wilson_interval(sum(sums) / sum(counts), len(groups))
    return [min(low, wilson[0]), max(high, wilson[1])] if len(groups) < 10 else [low, high]


def wilson_interval(rate: float, count: int, confidence: float = 0.95) -> list[float]:
    """Wilson's score interval of a share among `count` independent outcomes."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return [centre - half, centre + half]


def winners_direction(turns: Sequence[RankedTurn]) -> float:
    """From -1 (the shorter reply always wins) to 1 (the longer one): the rankings' own taste for length."""
    signs = [
        math.copysign(1.0, len(turn.replies[i]) - len(turn.replies[j])) * (1 if q == 1.0 else -1)
        for turn in turns
        for i, j, q in turn.pairs()
        if q != 0.5 and len(turn.replies[i]) != len(turn.replies[j])
    ]
    return sum(signs) / len(signs) if signs else 0.0
