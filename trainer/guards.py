"""When PPO must stop: each rule a sentence, each limit from LEARNING.md.

A guard never mends anything. It names what went wrong; the run goes back to the best checkpoint before it.
"""

import math

from trainer.config import RefreshConfig


class Guards:
    """Watches one PPO run. `None` means go on, a sentence means stop."""

    def __init__(self, config: RefreshConfig, winners_direction: float) -> None:
        self._config = config
        self._winners_direction = winners_direction
        self._start: dict[str, float] = {}
        self._smoothed: dict[str, float] = {}
        self._clipped_updates = 0
        self._scores: list[tuple[float, float]] = []

    @property
    def judge(self) -> float:
        """The judge's score as a running mean."""
        return self._smoothed["judge"]

    def _smooth(self, name: str, value: float) -> float:
        """A running mean that leans on the last two or three updates."""
        self._smoothed[name] = 0.6 * self._smoothed.get(name, value) + 0.4 * value
        return self._smoothed[name]

    def check_rollout(self, metrics: dict[str, float]) -> str | None:
        """Before an update: is the policy that made these replies still sound?"""
        bad = _non_finite(metrics)
        if bad:
            return bad
        self._start = self._start or dict(metrics)
        smooth = {name: self._smooth(name, metrics[name]) for name in _SMOOTHED}
        start = self._start
        if smooth["start_kl"] > self._config.max_kl:
            far, limit = smooth["start_kl"], self._config.max_kl
            return f"The policy is {far:.1f} nats a reply from where it started, more than {limit:g}."
        if smooth["entropy"] < 0.3 * start["entropy"]:
            return f"The entropy fell to {smooth['entropy']:.2f}, below 30 % of {start['entropy']:.2f}."
        if smooth["eos_rate"] < start["eos_rate"] - 0.15:
            now, then = smooth["eos_rate"], start["eos_rate"]
            return f"Only {now:.0%} of replies end by themselves, {then:.0%} did at the start."
        if smooth["distinct_2"] < 0.5 * start["distinct_2"]:
            now, then = smooth["distinct_2"], start["distinct_2"]
            return f"Replies repeat themselves: distinct-2 fell from {then:.2f} to {now:.2f}."
        if metrics["empty_rate"] > 0.1:
            return f"{metrics['empty_rate']:.0%} of replies are empty."
        return self._check_length(smooth["length"]) or self._check_proxy(smooth)

    def _check_length(self, length: float) -> str | None:
        """Length may follow the rankings' winners; against them, or beyond five times, it is a hack."""
        start = self._start["length"]
        if is_length_unasked(length / max(start, 1.0), self._winners_direction):
            return f"Replies went from {start:.0f} to {length:.0f} tokens, which the rankings do not ask for."
        return None

    def _check_proxy(self, smooth: dict[str, float]) -> str | None:
        """The reward rising while a judge trained on other conversations falls is over-optimisation."""
        self._scores.append((smooth["score"], smooth["judge"]))
        if len(self._scores) < 6:
            return None
        (score_then, judge_then), (score_now, judge_now) = self._scores[-6], self._scores[-1]
        if score_now > score_then + 0.2 and judge_now < judge_then - 0.2:
            rise, fall = score_now - score_then, judge_then - judge_now
            return f"The reward rose by {rise:.2f} while the judge fell by {fall:.2f}."
        return None

    def check_update(self, metrics: dict[str, float]) -> str | None:
        """After an update: was the step itself sound?"""
        bad = _non_finite(metrics)
        if bad:
            return bad
        if metrics["approx_kl"] > 0.15:
            return f"One update moved the policy by {metrics['approx_kl']:.2f} nats a token, more than 0.15."
        self._clipped_updates = self._clipped_updates + 1 if metrics["clip_fraction"] > 0.4 else 0
        if self._clipped_updates >= 3:
            return "More than 40 % of tokens were clipped in three updates in a row."
        return None


def is_length_unasked(growth: float, winners_direction: float) -> bool:
    """Whether replies grew (or shrank) by a factor that the winners of the rankings do not explain."""
    against = (growth > 1.5 and winners_direction < -0.1) or (growth < 1 / 1.5 and winners_direction > 0.1)
    return against or growth > 5 or (growth < 1 / 5 and winners_direction > -0.1)


_SMOOTHED = ("start_kl", "entropy", "eos_rate", "distinct_2", "length", "score", "judge")


def _non_finite(metrics: dict[str, float]) -> str | None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{bad[0]} is not a finite number." if bad else None
