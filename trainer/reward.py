"""Stage 2, the reward model: rankings -> a scalar that says how much a person would like a reply.

    L = mean over rankings of  mean over pairs (i, j) of  -q log s(d) - (1 - q) log s(-d),   d = r_i - r_j

with q = 1 where i was put above j and 1/2 for a tie (InstructGPT 3.5, arXiv 2203.02155; ties as soft labels).
Each reply is scored once and all replies of a ranking stay in one step, so a ranking counts as one data
point whatever its K. `all_bad` gives no pair: its replies are pushed below those ranked beside it.

This file trains and reads one model; ensemble.py trains several of them, examine.py says how good they are.
"""

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chatbot.chatformat import ChatFormat, Messages
from chatbot.policy import Policy
from data.comparisons import Pair, RankedTurn, hits
from data.errors import Refused
from trainer.config import RefreshConfig
from trainer.forward import TOKENS_PER_PASS, Reply, micro_batches, reply_scores
from trainer.optimiser import adamw
from trainer.team import SOLO, Team
from trainer.telling import Step

_ALL_BAD_WEIGHT = 0.1
_LENGTH_GAIN, _LENGTH_LR = 500.0, 0.15
"""The length weight is a single number, which Adam would move only as fast as one of the head's hundreds of
weights. So its learning rate is `_LENGTH_GAIN` times theirs, at most `_LENGTH_LR`, in log odds for a reply e
times as long.
"""
_MOST_PADDED = 4
"""Times the room of a pass that padded sequences may take: attention unpacks what the rest shares."""
_MAX_TOKENS = 1024
"""Of a prompt, and of a reply: what is longer is cut."""


@dataclass(frozen=True)
class TokenisedTurn:
    """A ranking ready for the model: K replies, the pairs among them, and what it weighs."""

    turn: RankedTurn
    replies: list[Reply]
    pairs: list[Pair]
    weight: float

    @property
    def longest(self) -> int:
        return max(len(reply.ids) for reply in self.replies)

    @property
    def tokens(self) -> int:
        return len(self.replies) * self.longest


def tokenise(
    turns: Sequence[RankedTurn], chat: ChatFormat, context: int = 2 * _MAX_TOKENS
) -> list[TokenisedTurn]:
    """Token ids by the one chat format; prompts longer than 1,024 tokens lose their oldest turns, replies
    longer than that their end. A base whose `context` holds less than both gives each half of it."""
    out, longest = [], min(_MAX_TOKENS, context // 2)
    for turn in turns:
        prompt = _fit_prompt(turn.prompt, chat, longest)
        replies = []
        for reply, cut in zip(turn.replies, turn.cut, strict=True):
            ids = chat.encode_reply(reply, finished=not cut)
            replies.append(Reply(prompt, ids[:longest], not cut and len(ids) <= longest))
        out.append(TokenisedTurn(turn, replies, turn.pairs(), turn.weight))
    return out


def _fit_prompt(messages: Messages, chat: ChatFormat, longest: int) -> list[int]:
    try:
        return chat.fit(messages, longest).ids
    except Refused:  # its last message alone is longer: what counts is the end, next to the reply
        return chat.encode(messages[-1:])[-longest:]


def can_teach(turns: Sequence[RankedTurn]) -> bool:
    """Whether at least one pair of replies is decided: ties alone teach no preference."""
    return any(pair.is_decided for turn in turns for pair in turn.pairs())


def ranking_loss(scores: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The K-way loss of one ranking: scores (K,), pairs (i, j, q) -> scalar, the mean over its pairs."""
    i, j, q = (torch.tensor(column, device=scores.device) for column in zip(*pairs, strict=True))
    d = scores[i] - scores[j]
    return -(q * F.logsigmoid(d) + (1 - q) * F.logsigmoid(-d)).mean()


def all_bad_loss(scores: Tensor, level: float) -> Tensor:
    """Push every reply of an `all_bad` turn, (K,), below `level`, the mean score of ranked replies."""
    return _ALL_BAD_WEIGHT * F.softplus(scores - level).mean()


def train_reward(
    policy: Policy,
    name: str,
    turns: Sequence[RankedTurn],
    config: RefreshConfig,
    *,
    seed: int,
    tell: Step,
    start: Path | None = None,
    team: Team = SOLO,
) -> None:
    """Train an adapter with a scalar head, called `name`, on `turns`; `tell` hears loss and accuracy.

    A fresh one, or the one saved in `start` taken further. Its scores are not normalised yet. Each member of
    `team` takes a share of every step, and all end with the same adapter.
    Raises Refused where the turns hold nothing to learn from.
    """
    if not can_teach(turns):
        raise Refused("The rankings hold no preference, only ties - rank some replies above others.")
    tokenised = tokenise(turns, policy.base.format, policy.base.context)
    data = _weighed([t for t in tokenised if t.pairs or t.turn.kind == "all_bad"])
    level = add_reward_model(policy, name, config, seed=seed, start=start)
    # A difference of scores has no bias: its gradient is rounding noise, which Adam would take for a signal.
    head = policy.heads[name]
    parameters = [p for p in policy.parameters(name) if p is not head.bias]
    epochs = passes(len(data), config)
    steps = math.ceil(len(data) / config.reward_batch) * epochs
    weights = [p for p in parameters if p is not head.length]
    own_rate = min(_LENGTH_GAIN * config.reward_lr, _LENGTH_LR)
    optimiser, schedule = adamw(weights, config.reward_lr, steps, others=[(head.length, own_rate)])
    shuffle, step = random.Random(seed), 0
    for _ in range(epochs):
        shuffle.shuffle(data)
        for first in range(0, len(data), config.reward_batch):
            optimiser.zero_grad(set_to_none=True)
            metrics = _accumulate(policy, name, data[first : first + config.reward_batch], level, team)
            if not math.isfinite(metrics["loss"]):
                raise Refused(f"The loss of {name!r} is not finite - lower --reward-lr.")
            level = metrics["level"]
            team.sum_gradients(parameters)
            metrics["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                head.length.clamp_(max=0.0)  # it may reward brevity only: ScalarHead
            step += 1
            tell(step, step / steps, metrics)


def add_reward_model(
    policy: Policy, name: str, config: RefreshConfig, *, seed: int, start: Path | None
) -> float:
    """Add reward model `name` to `policy`, fresh or from `start`, un-normalised; returns its mean score.

    Normalisation is taken off, not folded in: the loss reads a difference of raw scores as log odds.
    """
    if start is None:
        policy.add(name, seed=seed, rank=config.rank, with_head=True, depth=config.depth)
        return 0.0
    policy.load(name, start, with_head=True)
    return policy.heads[name].make_raw()


def passes(rankings: int, config: RefreshConfig) -> int:
    """How often to go over `rankings`: more often over few, which are too few steps otherwise."""
    wanted = math.ceil(config.reward_steps / math.ceil(rankings / config.reward_batch))
    return min(max(config.reward_epochs, wanted), 2 * config.reward_epochs)


def _weighed(data: list[TokenisedTurn]) -> list[TokenisedTurn]:
    """The turns with weights around 1 over all of them, not step by step: a light ranking is a light step."""
    mean = sum(t.weight for t in data) / len(data)
    return [replace(t, weight=t.weight / mean) for t in data]


def _accumulate(
    policy: Policy, name: str, batch: list[TokenisedTurn], level: float, team: Team
) -> dict[str, float]:
    """Gradients of the mean loss over `batch`, of which this member of the team takes its share.

    Ranked turns go first: their mean score, `level`, is what `all_bad` replies are held against. Where a step
    has none of them, the mean of the last step that had some serves.
    """
    batch = sorted(batch, key=lambda t: t.tokens)
    ranked, bad = [t for t in batch if t.pairs], [t for t in batch if not t.pairs]
    own = _learn_ranked(policy, name, team.share(ranked), len(batch))
    loss, right, decided, total, replies = team.sum(own)
    level = total / replies if replies else level
    if bad:
        loss += team.sum([_learn_bad(policy, name, team.share(bad), len(batch), level)])[0]
    return {"loss": loss, "accuracy": right / max(decided, 1.0), "level": level}


def _learn_ranked(policy: Policy, name: str, turns: list[TokenisedTurn], count: int) -> list[float]:
    """Adds the gradients of ranked `turns`, of `count` in the step; returns sums over them: of the loss, the
    hits, the decided pairs, the scores, the replies."""
    loss, right, decided, total, replies = 0.0, 0.0, 0.0, 0.0, 0.0
    for group, scores in _groups_with_scores(policy, name, turns):
        losses = [ranking_loss(part, t.pairs) * t.weight for t, part in zip(group, scores, strict=True)]
        loss += _backward(losses, count)
        for t, part in zip(group, scores, strict=True):
            found = hits(t.pairs, part.tolist())
            right, decided = right + sum(found), decided + len(found)
            total, replies = total + float(part.detach().sum()), replies + len(part)
    return [loss, right, decided, total, replies]


def _learn_bad(policy: Policy, name: str, turns: list[TokenisedTurn], count: int, level: float) -> float:
    """Adds the gradients of `all_bad` turns, of `count` in the step, held against `level`; their loss."""
    loss = 0.0
    for group, scores in _groups_with_scores(policy, name, turns):
        losses = [all_bad_loss(part, level) * t.weight for t, part in zip(group, scores, strict=True)]
        loss += _backward(losses, count)
    return loss


def _groups_with_scores(
    policy: Policy, name: str, turns: list[TokenisedTurn]
) -> Iterator[tuple[list[TokenisedTurn], list[Tensor]]]:
    """A few whole rankings at a time with the scores of each, (K,), ready for a backward pass."""
    rows = [len(t.replies) for t in turns]
    for chosen in micro_batches([t.longest for t in turns], policy.device, rows):
        group = [turns[i] for i in chosen]
        scores = _scores(policy, name, [reply for t in group for reply in t.replies])
        yield group, list(scores.split([rows[i] for i in chosen]))


def _scores(policy: Policy, name: str, replies: list[Reply]) -> Tensor:
    """The score of each reply, (N,), which takes the memory of one pass however many they are.

    A ranking that is too much for one pass is read in several that keep nothing but the scores; the backward
    pass reads them again, one by one (gradient caching, arXiv 2101.06983). The gradient is the same.
    """
    parts = _parts(policy, [reply.ids for reply in replies])

    def read(part: list[int]) -> Tensor:
        return reply_scores(policy, name, [replies[i] for i in part])

    if len(parts) == 1:
        scores = read(parts[0])
    else:
        scores = torch.cat([checkpoint(read, part, use_reentrant=False) for part in parts])
    order = torch.tensor([i for part in parts for i in part], device=policy.device)
    return scores[order.argsort()]


def _parts(policy: Policy, sequences: list[list[int]]) -> list[list[int]]:
    """Which of them are read together: all, where one pass has room for what they do not have in common."""
    room, padded = TOKENS_PER_PASS[policy.device.type], len(sequences) * max(map(len, sequences))
    if room < padded <= _MOST_PADDED * room and policy.tokens_read(sequences) <= room:
        return [list(range(len(sequences)))]
    return list(micro_batches([len(sequence) for sequence in sequences], policy.device))


def _backward(losses: list[Tensor], count: int) -> float:
    """Adds the gradients of a micro-batch's part of the mean over `count` rankings; returns that part."""
    loss = torch.stack(losses).sum() / count
    loss.backward()
    return float(loss.detach())


@torch.no_grad()
def scores_of(policy: Policy, name: str, replies: Sequence[Reply]) -> list[float]:
    """The normalised score of each reply, in order."""
    scores = [0.0] * len(replies)
    for batch in micro_batches([len(reply.ids) for reply in replies], policy.device):
        values = reply_scores(policy, name, [replies[i] for i in batch]).tolist()
        for i, value in zip(batch, values, strict=True):
            scores[i] = value
    return scores


def normalise(policy: Policy, name: str, reference_replies: Sequence[Reply], team: Team = SOLO) -> None:
    """Shift and scale `name` so that replies of the reference score 0 on average with a spread of 1."""
    if len(reference_replies) < 2:
        raise Refused("One reply of the reference has no spread - give at least two prompts to practise on.")
    head = policy.heads[name]
    lengths = (math.log(max(1, len(reply.reply))) for reply in reference_replies)
    head.usual_length.fill_(statistics.fmean(lengths))
    scores = torch.tensor(team.collect(scores_of(policy, name, team.share(reference_replies))))
    head.mean.add_(scores.mean() * head.std)
    head.std.mul_(scores.std().clamp(min=1e-3))


def length_preference(turns: Sequence[RankedTurn]) -> float:
    """From -1 (the shorter reply always wins) to 1 (the longer one): the rankings' own taste for length.

    Each ranking counts with its weight, however many pairs it has, as in the loss.
    """
    told = weights = 0.0
    for turn in turns:
        decided = [pair for pair in turn.pairs() if pair.is_decided]
        sizes = [(len(turn.replies[pair.better]), len(turn.replies[pair.worse])) for pair in decided]
        if signs := [math.copysign(1.0, winner - loser) for winner, loser in sizes if winner != loser]:
            told += turn.weight * statistics.fmean(signs)
            weights += turn.weight
    return told / weights if weights else 0.0
