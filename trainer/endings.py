"""How replies end, and what those that were cut at the limit gain by it.

Where people like lists, or lines, or much of anything, a reply that never ends has most of it. They ranked
cut replies like all the rest, so the reward models reward being cut, and a policy's shortest way to a high
score is never to end. So ending is rewarded as well (ppo.apply_eos_rule), to make up for what it costs: as
the reference's replies tell, and as the policy's own do, which learns to gain more by being cut.

The policy's own figure counts in full while it finishes no more of its replies than at the start, and not at
all once it finishes `_ENOUGH_MORE` more. Where good replies are long, the finished ones are the short, poor
ones: a higher bonus makes them more frequent and shorter, and so the measured bonus (`structured`,
benchmarks/RESULTS.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trainer.forward import Reply

_FADING = 0.6
"""With each batch what was known before counts so much less: a gain is mostly that of the last three."""
_ENOUGH_MORE = 0.2
"""Where so much more of its replies end than at the start, the policy needs no higher price."""
_SURE = 4.0
"""The weight of eight replies of either kind: of fewer, a difference counts in part."""


@dataclass(frozen=True)
class Endings:
    """Of replies of the reference to practice prompts, at tonight's limit, and of the policy's own."""

    rate: float = 0.0
    """The share of the reference's that ends by itself."""
    replies: int = 0
    """How many of the reference's there are."""
    at_first: float = 0.0
    """What the reference's gain by being cut."""
    difference: float = 0.0
    """How much higher those that were cut are scored on average; mostly the policy's own."""
    weight: float = 0.0
    """n m / (n + m) of n that ended and m that were cut: one over the variance of the difference between
    scores of variance 1."""
    more: float = 0.0
    """The share of the policy's replies that ends, less that at the start."""

    @property
    def is_usual(self) -> bool:
        """Whether a reply that is cut has gone wrong."""
        return self.rate >= 0.8

    @property
    def cut_gain(self) -> float:
        """What is paid for ending, to make up for the difference; 0 where being cut gains nothing."""
        needed = min(1.0, max(0.0, 1.0 - self.more / _ENOUGH_MORE))
        return self.at_first + needed * max(0.0, _gain(self.difference, self.weight) - self.at_first)

    def after(self, finished: Sequence[bool], scores: Sequence[float], more: float) -> "Endings":
        """With a batch of the policy's replies, which counts more than what was known before."""
        difference, weight = _compare(finished, scores)
        before = _FADING * self.weight
        both = before + weight
        if not both:
            return replace(self, more=more)
        mean = (before * self.difference + weight * difference) / both
        return replace(self, difference=mean, weight=both, more=more)


def endings_of(replies: Sequence[Reply], scores: Sequence[float]) -> Endings:
    """What these replies of the reference and their scores say."""
    finished = [reply.finished for reply in replies]
    difference, weight = _compare(finished, scores)
    rate, at_first = sum(finished) / len(finished), _gain(difference, weight)
    return Endings(rate, len(finished), at_first, difference, weight)


def _gain(difference: float, weight: float) -> float:
    return max(0.0, difference) * min(1.0, weight / _SURE)


def _compare(finished: Sequence[bool], scores: Sequence[float]) -> tuple[float, float]:
    """The difference that being cut makes, and its weight."""
    ended = [score for score, ends in zip(scores, finished, strict=True) if ends]
    cut = [score for score, ends in zip(scores, finished, strict=True) if not ends]
    if not (ended and cut):
        return 0.0, 0.0
    return fmean(cut) - fmean(ended), len(ended) * len(cut) / len(scores)
