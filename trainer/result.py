"""What stage 3 leaves behind, PPO or best-of-K: figures, samples, and sentences for the operator."""

from dataclasses import dataclass, field
from typing import Any

from trainer.endings import Endings


@dataclass
class PolicyResult:
    """What a run leaves behind. The chosen weights are in the adapter `policy`."""

    best_update: int = 0
    """The checkpoint the judge liked best, counted in updates done."""
    updates: int = 0
    stopped: str | None = None
    """Why it stopped early, as a sentence."""
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What an operator should know of the run, as sentences."""
    samples: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Update -> a few of its replies: `prompt` and `reply` as token ids, `score`, `judge`."""


def notes_on(result: PolicyResult, endings: Endings) -> list[str]:
    """What an operator should know of a finished run beside why it stopped.

    `endings` are as its last batches left them.
    """
    notes = []
    if not endings.is_usual:
        gain = endings.cut_gain
        gained = f", in the end {gain:.2f} besides for what being cut gains" if gain else ""
        notes.append(
            f"The reference ends {endings.rate:.0%} of its replies within the limit: "
            f"one that ends gets {endings.rate:.2f} more{gained}."
        )
    far = result.history[result.best_update]["kl"]
    if far > 30:
        notes.append(
            f"The policy is {far:.0f} nats a reply from the reference, past 30 - "
            "run trainer sft and publish it, or roll back."
        )
    return notes
