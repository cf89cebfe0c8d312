"""When PPO must stop: each rule a sentence.

A guard never mends anything. It names what went wrong; the run goes back to the best checkpoint before it.
Batches are small and noisy, so most rules look at a running mean, and those that compare two rates or read a
correlation ask besides for more than chance explains.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config import RefreshConfig
from trainer.endings import Endings

LOOK_BACK = 5
"""Updates over which the reward is compared with the judge."""
_SMOOTHING = 0.4
_MEMORY = (2 - _SMOOTHING) / _SMOOTHING
"""A running mean is as steady as one over this many batches."""
_SMOOTHED = (
    "start_kl",
    "entropy",
    "eos_rate",
    "empty_rate",
    "distinct_2",
    "disagreement",
    "length",
    "score",
    "judge",
)
_START_BATCHES = 2
_LEAST_DISAGREEMENT = 0.15
"""In score units (the reference's spread is 1); three times less than this is still agreement."""
_CHANCE = 3.0
"""Standard errors: once in 700 looks by chance."""
_RARE = 4.0
"""Standard errors: once in 30,000 looks by chance."""
_LIKELY = 1.5
"""Standard errors: once in 15 looks by chance."""


@dataclass(frozen=True)
class Rate:
    """The share of replies of which something is so, and how many were looked at."""

    share: float
    replies: float
    """A running mean is as good as `_MEMORY` batches."""

    @property
    def rest(self) -> "Rate":
        """Those of which it is not so."""
        return Rate(1 - self.share, self.replies)


@dataclass
class Seen:
    """What the guards remember; a checkpoint holds it."""

    batches: int = 0
    start: dict[str, float] = field(default_factory=dict)
    smooth: dict[str, float] = field(default_factory=dict)
    clipped_updates: int = 0
    scores: list[list[float]] = field(default_factory=list)
    """[score, judge] of each batch, as running means."""
    agreement: list[float] = field(default_factory=list)
    """The correlation of score and judge within each batch."""
    flat_batches: int = 0


class Guards:
    """Watches one PPO run. `None` means go on, a sentence means stop."""

    def __init__(
        self, config: RefreshConfig, length_preference: float, endings: Endings | None = None
    ) -> None:
        """`endings` are those of the policy that the night starts with, where they were counted before."""
        self._config = config
        self._length_preference = length_preference
        self._endings = endings or Endings()
        self._seen = Seen()

    @property
    def judge(self) -> float:
        """The judge's score as a running mean."""
        return self._seen.smooth["judge"]

    @property
    def keeps_endings(self) -> bool:
        """Whether enough replies still end for the gate, which allows ten points fewer than before."""
        return not self._ends_fewer(_LIKELY)

    @property
    def more_endings(self) -> float:
        """The share of replies that ends, as a running mean, less that at the start."""
        return self._seen.smooth["eos_rate"] - self._seen.start["eos_rate"]

    def _ends_fewer(self, errors: float) -> bool:
        at_first = self._at_first("eos_rate", besides=self._endings.replies)
        return has_fallen(at_first, self._lately("eos_rate"), errors)

    def _are_more_empty(self) -> bool:
        """Whether fewer replies say something than at the start, where a base may have blank ones too."""
        return has_fallen(self._at_first("empty_rate").rest, self._lately("empty_rate").rest)

    def _at_first(self, name: str, besides: int = 0) -> Rate:
        """Over the first batches, and `besides` replies that were counted before them."""
        return Rate(self._seen.start[name], _START_BATCHES * self._config.prompts_per_update + besides)

    def _lately(self, name: str) -> Rate:
        return Rate(self._seen.smooth[name], _MEMORY * self._config.prompts_per_update)

    def facts(self) -> dict[str, Any]:
        """All that was seen, as JSON."""
        return asdict(self._seen)

    def restore(self, facts: dict[str, Any]) -> None:
        """Become the guards that gave `facts`."""
        self._seen = Seen(**facts)

    def check_rollout(self, metrics: dict[str, float]) -> str | None:
        """Before an update: is the policy that made these replies still sound?"""
        if bad := _non_finite(metrics):
            return bad
        seen = self._seen
        seen.batches += 1
        seen.start = seen.start or dict(metrics)
        if seen.batches == _START_BATCHES:  # little is learned yet: the start from two batches
            for name in ("eos_rate", "length", "empty_rate"):
                seen.start[name] = (seen.start[name] + metrics[name]) / _START_BATCHES
            seen.start["eos_rate"] = self._pooled(seen.start["eos_rate"])
        for name in _SMOOTHED:
            seen.smooth[name] = _blend(seen.smooth.get(name, metrics[name]), metrics[name])
        return self._check_policy() or self._check_length() or self._check_reward(metrics)

    def _pooled(self, rate: float) -> float:
        """The share that ended in the first batches, together with the replies that were counted before."""
        before, count = self._endings.replies, _START_BATCHES * self._config.prompts_per_update
        return (self._endings.rate * before + rate * count) / (before + count)

    def _check_policy(self) -> str | None:
        smooth, start = self._seen.smooth, self._seen.start
        if smooth["start_kl"] > self._config.max_kl:
            far, limit = smooth["start_kl"], self._config.max_kl
            return f"The policy is {far:.1f} nats a reply from where it started, more than {limit:g}."
        if smooth["entropy"] < 0.3 * start["entropy"]:
            return f"The entropy fell to {smooth['entropy']:.2f}, below 30 % of {start['entropy']:.2f}."
        is_known = self._seen.batches > _START_BATCHES
        if is_known and self._ends_fewer(_CHANCE):
            now, then = smooth["eos_rate"], start["eos_rate"]
            return f"Only {now:.0%} of replies end by themselves, {then:.0%} did at the start."
        if is_known and self._are_more_empty():
            now, then = smooth["empty_rate"], start["empty_rate"]
            return f"{now:.0%} of replies are empty, {then:.0%} were at the start."
        if smooth["distinct_2"] < 0.5 * start["distinct_2"]:
            now, then = smooth["distinct_2"], start["distinct_2"]
            return f"Replies repeat themselves: distinct-2 fell from {then:.2f} to {now:.2f}."
        return None

    def _check_length(self) -> str | None:
        """Length may follow the rankings' winners; against them, or beyond four times, it is a hack.

        The gate allows five times; a batch of 16 is too small to go nearer to that.
        """
        start, length = self._seen.start["length"], self._seen.smooth["length"]
        if is_length_unasked(length / max(start, 1.0), self._length_preference, most=4.0):
            return f"Replies went from {start:.0f} to {length:.0f} tokens, which the rankings do not ask for."
        return None

    def _check_reward(self, metrics: dict[str, float]) -> str | None:
        """Does the reward still say something, the same as its members, and the same as the judge?"""
        seen, smooth = self._seen, self._seen.smooth
        seen.flat_batches = seen.flat_batches + 1 if metrics["score_std"] < 1e-4 else 0
        if seen.flat_batches >= 2:
            return "The reward gives every reply the same score, which teaches nothing."
        then = max(seen.start["disagreement"], _LEAST_DISAGREEMENT)
        if smooth["disagreement"] > 3 * then:
            now = smooth["disagreement"]
            return (
                f"The reward models disagree by {now:.2f}, more than three times the {then:.2f} of the start."
            )
        return self._check_agreement(metrics["score_judge_correlation"]) or self._check_rise()

    def _check_agreement(self, correlation: float) -> str | None:
        """A reward that ranks the replies of a batch against the judge is no reward (Fisher's z)."""
        agreement = self._seen.agreement
        agreement.append(correlation)
        recent = agreement[-LOOK_BACK:]
        mean = sum(recent) / len(recent)
        batch = max(self._config.prompts_per_update - 3, 0)
        z = math.atanh(max(min(mean, 0.999), -0.999)) * math.sqrt(batch * len(recent))
        if len(agreement) >= 2 and mean < -0.3 and z < -_RARE:
            return f"The reward contradicts the judge: within a batch they correlate at {mean:+.2f}."
        return None

    def _check_rise(self) -> str | None:
        """The reward rising while a judge trained on other conversations falls is over-optimisation."""
        scores, smooth = self._seen.scores, self._seen.smooth
        scores.append([smooth["score"], smooth["judge"]])
        if len(scores) <= LOOK_BACK:
            return None
        (score_then, judge_then), (score_now, judge_now) = scores[-1 - LOOK_BACK], scores[-1]
        if score_now > score_then + 0.2 and judge_now < judge_then - 0.2:
            rise, fall = score_now - score_then, judge_then - judge_now
            return f"The reward rose by {rise:.2f} while the judge fell by {fall:.2f}."
        return None

    def check_update(self, metrics: dict[str, float]) -> str | None:
        """After an update: was the step itself sound?"""
        if bad := _non_finite(metrics):
            return bad
        if metrics["approx_kl"] > 0.15:
            return f"One update moved the policy by {metrics['approx_kl']:.2f} nats a token, more than 0.15."
        seen = self._seen
        seen.clipped_updates = seen.clipped_updates + 1 if metrics["clip_fraction"] > 0.4 else 0
        if seen.clipped_updates >= 3:
            return "More than 40 % of tokens were clipped in three updates in a row."
        return None


def has_fallen(then: Rate, now: Rate, errors: float = _CHANCE) -> bool:
    """Whether a rate fell by ten points and, beyond chance, by so many standard errors.

    Ten points alone would stop a third of all sound nights: the rate of 16 replies swings by 12. So the fall
    must be three standard errors too (a two-sample test of proportions), which stops one sound night in 200.
    With batches of 16 that asks for a fall from 20 % to 2, from half to 20 %, or from all to 76 %; with
    hundreds, for ten points.
    """
    pooled = (then.replies * then.share + now.replies * now.share) / (then.replies + now.replies)
    error = math.sqrt(pooled * (1 - pooled) * (1 / then.replies + 1 / now.replies))
    return then.share - now.share > max(0.1, errors * error)


def is_length_unasked(growth: float, length_preference: float, most: float = 5.0) -> bool:
    """Whether replies grew or shrank by a factor that the winners of the rankings do not explain.

    Beyond `most` nothing explains it: of replies that are a fifth of what they were, many are fragments.
    """
    against = (growth > 1.5 and length_preference < -0.1) or (growth < 1 / 1.5 and length_preference > 0.1)
    return against or not 1 / most <= growth <= most


def _blend(old: float, new: float) -> float:
    """A running mean that leans on the last two or three batches."""
    return (1 - _SMOOTHING) * old + _SMOOTHING * new


def _non_finite(metrics: dict[str, float]) -> str | None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{bad[0]} is not a finite number." if bad else None
