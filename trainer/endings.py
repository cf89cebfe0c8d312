"""How replies end, and what those that were cut at the limit gain by it.

Where people like lists, or lines, or much of anything, a reply that never ends has most of it. They ranked
cut replies like all the rest, so the reward models reward being cut, and a policy's shortest way to a high
score is never to end. So ending is rewarded as well (ppo.apply_eos_rule), to make up for what it costs: at
first as the reference's replies tell, then as the policy's own do, which learns to gain more by being cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trainer.forward import Reply

_FADING = 0.6
"""With each batch what was known before counts so much less: a gain is mostly that of the last three."""
_SURE = 4.0
"""The weight of eight replies of either kind: of fewer, a difference counts in part."""


@dataclass(frozen=True)
class Endings:
    """Of replies of the reference to practice prompts, at tonight's limit; then of the policy's as well."""

    rate: float = 0.0
    """The share of the reference's that ends by itself."""
    replies: int = 0
    """How many of the reference's there are."""
    difference: float = 0.0
    """How much higher those that were cut are scored on average."""
    weight: float = 0.0
    """n m / (n + m) of n that ended and m that were cut: one over the variance of the difference between
    scores of variance 1."""

    @property
    def is_usual(self) -> bool:
        """Whether a reply that is cut has gone wrong."""
        return self.rate >= 0.8

    @property
    def cut_gain(self) -> float:
        """What is paid for ending, to make up for the difference; 0 where being cut gains nothing."""
        return max(0.0, self.difference) * min(1.0, self.weight / _SURE)

    def after(self, finished: Sequence[bool], scores: Sequence[float]) -> "Endings":
        """With a batch of the policy's replies, which counts more than what was known before."""
        difference, weight = _compare(finished, scores)
        before = _FADING * self.weight
        both = before + weight
        if not both:
            return self
        mean = (before * self.difference + weight * difference) / both
        return replace(self, difference=mean, weight=both)


def endings_of(replies: Sequence[Reply], scores: Sequence[float]) -> Endings:
    """What these replies of the reference and their scores say."""
    finished = [reply.finished for reply in replies]
    return Endings(sum(finished) / len(finished), len(finished), *_compare(finished, scores))


def _compare(finished: Sequence[bool], scores: Sequence[float]) -> tuple[float, float]:
    """The difference that being cut makes, and its weight."""
    ended = [score for score, ends in zip(scores, finished, strict=True) if ends]
    cut = [score for score, ends in zip(scores, finished, strict=True) if not ends]
    if not (ended and cut):
        return 0.0, 0.0
    return fmean(cut) - fmean(ended), len(ended) * len(cut) / len(scores)
