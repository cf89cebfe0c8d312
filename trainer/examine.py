"""How good a reward model is, on rankings that it was not trained on: never one bare number.

    report = examine(policy, ["reward-0", "reward-1", "reward-2"], turns, seed=0)

One model or an ensemble, whose score is the mean over its members. The report holds

- `accuracy` over decided pairs, with a 95 % interval bootstrapped by `RankedTurn.group`, since a ranking's
  pairs are not independent, nor are rankings of one dialogue; beside it what "the longest wins" and "the
  first shown wins" get on the same pairs, and how often two people who ranked the same replies say the
  same (`people_agreement`): where they differ no model is right by both;
- `kendall_tau`, for rankings of more than two replies;
- `ece` and `reliability`: do the pairs that it is 80 % sure of come out that way in 80 % of cases? Bradley
  and Terry's P(i beats j) = sigmoid(r_i - r_j) is said of raw scores, before they were divided by their
  spread, so that division is undone first; the r of an ensemble is the mean of its members' raw ones;
- `score_length_correlation`, `disagreement` of the members, accuracy by source, and by person of what was
  ranked here: an import has its source alone;
- `paraphrase_flip_rate`: how often the same prompt in other words turns the order of two replies round.

A hit counts 1, a miss 0 and equal scores 1/2. What there is no pair to measure on is None.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chatbot.policy import Policy
from data.comparisons import Pair, RankedTurn, agreement, hits
from data.prompts import Paraphrase
from trainer.correlation import correlation, kendall_tau
from trainer.forward import Reply
from trainer.intervals import bootstrap_by_group, by_group
from trainer.reward import scores_of, tokenise
from trainer.telling import Done, nobody, within

BINS = 10
"""Equal steps of confidence, from 1/2 to 1."""
_AT_ONCE = 64
"""Replies scored between two words about how far it is."""
_RANKINGS = 0.8
"""The part of the time that the rankings take; the rest is the paraphrases."""


class EnsembleScores(NamedTuple):
    """What an ensemble says of N replies, one figure for each."""

    mean: list[float]
    """Over the members, of the normalised score."""
    raw_mean: list[float]
    """Over the members, of the score before normalisation: a difference of two is log odds."""
    spread: list[float]
    """The members' standard deviation of the normalised score."""


@dataclass(frozen=True)
class Examined:
    """A ranking and what the models gave its K replies."""

    turn: RankedTurn
    pairs: list[Pair]
    scores: list[float]
    raw: list[float]

    @property
    def sizes(self) -> list[float]:
        """Of each reply, in characters."""
        return [float(len(reply)) for reply in self.turn.replies]


def examine(
    policy: Policy,
    names: Sequence[str],
    turns: Sequence[RankedTurn],
    *,
    seed: int,
    most: int | None = None,
    paraphrases: Sequence[Paraphrase] = (),
    tell: Done = nobody,
) -> dict[str, Any]:
    """The report on the reward models `names` of `policy`, as JSON.

    turns: rankings they did not learn from; `held_out` of them say something.
    seed: the bootstrap's.
    most: of more rankings than this, only the last are examined; None examines all.
    """
    held_out = [turn for turn in turns if turn.pairs()]
    asked = held_out if most is None else held_out[-most:]
    examined, disagreement = _score(policy, names, asked, within(tell, 0.0, _RANKINGS))
    flips = flip_rate(policy, names, paraphrases, within(tell, _RANKINGS, 1.0))
    outcomes = [(e.turn, hit) for e in examined for hit in hits(e.pairs, e.scores)]
    groups = by_group((turn.group, hit) for turn, hit in outcomes)
    here = [(turn, hit) for turn, hit in outcomes if turn.source != "imported"]
    bins = calibration_bins([d for e in examined for d in _margins(e)])
    said = sum(len(e.pairs) for e in examined)
    return {
        "accuracy": _mean([hit for _, hit in outcomes], 0.5),
        "accuracy_interval": bootstrap_by_group(list(groups.values()), seed) if outcomes else [0.0, 1.0],
        "pairs": len(outcomes),
        "rankings": len(examined),
        "held_out": len(held_out),
        "ties": 1 - len(outcomes) / said if said else 0.0,
        "always_longest": _mean([hit for e in examined for hit in hits(e.pairs, e.sizes)], 0.5),
        "always_first_shown": _mean([hit for e in examined for hit in hits(e.pairs, _firsts(e.turn))], 0.5),
        "people_agreement": agreement(asked),
        "kendall_tau": mean_tau(examined),
        "ece": expected_calibration_error(bins),
        "reliability": bins,
        "score_length_correlation": correlation(
            _column(score for e in examined for score in e.scores),
            _column(size for e in examined for size in e.sizes),
        ),
        "disagreement": disagreement,
        "accuracy_by_person": _accuracies(here, lambda turn: turn.person_id),
        "accuracy_by_source": _accuracies(outcomes, lambda turn: turn.source),
        "paraphrase_flip_rate": flips,
        "paraphrases": len(paraphrases),
    }


def _score(
    policy: Policy, names: Sequence[str], turns: Sequence[RankedTurn], tell: Done
) -> tuple[list[Examined], float]:
    """Every ranking with its scores, and the members' mean standard deviation."""
    data = tokenise(turns, policy.base.format, policy.base.context)
    scores = ensemble_scores(policy, names, [reply for t in data for reply in t.replies], tell)
    examined, at = [], 0
    for t in data:
        here = slice(at, at := at + len(t.replies))
        examined.append(Examined(t.turn, t.pairs, scores.mean[here], scores.raw_mean[here]))
    return examined, _mean(scores.spread, 0.0)


def ensemble_scores(
    policy: Policy, names: Sequence[str], replies: Sequence[Reply], tell: Done = nobody
) -> EnsembleScores:
    """What the models `names` say together of each reply, in order."""
    if not replies:
        return EnsembleScores([], [], [])
    rows: list[list[float]] = [[] for _ in names]
    for i, name in enumerate(names):
        for first in range(0, len(replies), _AT_ONCE):
            rows[i] += scores_of(policy, name, replies[first : first + _AT_ONCE])
            tell((i + len(rows[i]) / len(replies)) / len(names))
    scores = torch.tensor(rows)  # (M, N)
    heads = [policy.heads[name] for name in names]
    raw = torch.stack(
        [row * head.std.cpu() + head.mean.cpu() for row, head in zip(scores, heads, strict=True)]
    )
    return EnsembleScores(scores.mean(0).tolist(), raw.mean(0).tolist(), scores.std(0, correction=0).tolist())


def calibration_bins(margins: Sequence[float]) -> list[dict[str, float]]:
    """The plot's points: pairs by confidence sigmoid(|d|), `margins` being d = r_winner - r_loser.

    Each bin has the mean confidence of its pairs and the share that came out as predicted; empty ones are
    left out.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for d in margins:
        confidence = 1 / (1 + math.exp(-abs(d)))
        hit = 0.5 if d == 0 else float(d > 0)
        bins[min(int((confidence - 0.5) * 2 * BINS), BINS - 1)].append((confidence, hit))
    return [
        {
            "confidence": statistics.fmean(confidence for confidence, _ in found),
            "accuracy": statistics.fmean(hit for _, hit in found),
            "pairs": len(found),
        }
        for found in bins
        if found
    ]


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float | None:
    """ECE = sum over bins of |accuracy - confidence|, weighted by their pairs (Naeini et al. 2015)."""
    pairs = sum(entry["pairs"] for entry in bins)
    gaps = sum(entry["pairs"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins)
    return gaps / pairs if pairs else None


def mean_tau(examined: Sequence[Examined]) -> float | None:
    """Over the rankings of more than two replies: of two, tau says what accuracy does."""
    taus = [kendall_tau(e.pairs, e.scores) for e in examined if len(e.scores) > 2]
    found = [tau for tau in taus if tau is not None]
    return statistics.fmean(found) if found else None


def flip_rate(
    policy: Policy, names: Sequence[str], paraphrases: Sequence[Paraphrase], tell: Done = nobody
) -> float | None:
    """The share of paraphrases under which the two replies change places (a tie that breaks counts half)."""
    chat = policy.base.format
    replies = [
        Reply(chat.encode([{"role": "user", "content": prompt}]), chat.encode_reply(reply), True)
        for p in paraphrases
        for prompt in (p.prompt, p.reworded)
        for reply in p.replies
    ]
    scores = ensemble_scores(policy, names, replies, tell).mean
    signs = [(a > b) - (a < b) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    flips = [abs(x - y) / 2 for x, y in zip(signs[::2], signs[1::2], strict=True)]
    return statistics.fmean(flips) if flips else None


def _margins(examined: Examined) -> list[float]:
    """d = r_winner - r_loser, raw, of each decided pair."""
    decided = [pair for pair in examined.pairs if pair.is_decided]
    return [examined.raw[pair.better] - examined.raw[pair.worse] for pair in decided]


def _firsts(turn: RankedTurn) -> list[float]:
    """More of it for who stood further up. An import was not shown: where it lies in its row, often best
    first, is the file's doing and no habit of somebody who read."""
    return [0.0 if turn.source == "imported" else -float(position) for position in turn.shown]


def _accuracies(
    hits: Sequence[tuple[RankedTurn, float]], key: Callable[[RankedTurn], str]
) -> dict[str, dict[str, float]]:
    return {
        name: {"accuracy": statistics.fmean(group), "pairs": len(group)}
        for name, group in sorted(by_group((key(turn), hit) for turn, hit in hits).items())
    }


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _mean(values: Sequence[float], empty: float) -> float:
    return statistics.fmean(values) if values else empty
