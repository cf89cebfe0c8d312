"""How replies of the reference end, and what those that were cut at the limit gain by it.

Where people like lists, or lines, or much of anything, a reply that never ends has most of it. They ranked
cut replies like all the rest, so the reward models reward being cut, and a policy's shortest way to a high
score is never to end. So ending is rewarded as well (ppo.apply_eos_rule), to make up for what it costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from trainer.forward import Reply

_FEWEST = 8
"""Replies of either kind, of fewer of which a mean says nothing."""


@dataclass(frozen=True)
class Endings:
    """Of replies of the reference to practice prompts, at tonight's limit."""

    rate: float = 0.0
    """The share that ends by itself."""
    cut_gain: float = 0.0
    """How much higher the others are scored on average; 0 where they are not."""
    replies: int = 0
    """How many there are."""

    @property
    def is_usual(self) -> bool:
        """Whether a reply that is cut has gone wrong."""
        return self.rate >= 0.8


def endings_of(replies: Sequence[Reply], scores: Sequence[float]) -> Endings:
    """What these replies and their scores say."""
    ended = [score for reply, score in zip(replies, scores, strict=True) if reply.finished]
    cut = [score for reply, score in zip(replies, scores, strict=True) if not reply.finished]
    is_known = min(len(ended), len(cut)) >= _FEWEST
    gain = max(0.0, fmean(cut) - fmean(ended)) if is_known else 0.0
    return Endings(len(ended) / len(replies), gain, len(replies))
