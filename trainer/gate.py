"""The gate: is the candidate better than what serves, and no worse elsewhere?

In order, each with its figure in the report; the first failures are sentences and what serves stays:

1. the files: readable by the same check that the server makes, and a change that is not zero;
2. the judge: on rankings of other conversations than it was trained on, better than a coin;
3. the replay: one reply each from candidate and current to prompts no selection saw, scored by the judge
   (never by PPO's own reward): the lower bound of the win rate must exceed one half less a margin;
4. vetoes that no vote can buy off: empty, repeated and never-ending replies, and lengths nobody asked for.

A refusal is a normal, recorded outcome. Left out on purpose, for now: refusal and capability probes.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel

from chatbot.policy import Policy
from data.records import Prompt, Sampling
from trainer.config import RefreshConfig
from trainer.guards import is_length_unasked
from trainer.reward import bootstrap_by_group, score_sequences
from trainer.rollout import Reply, distinct_2, sample_replies

_SAMPLES_SHOWN = 10


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and all it measured."""

    passed: bool
    reasons: list[str]
    """Why not, or, where it passed, by how much."""
    win_rate: float
    win_rate_interval: list[float]
    replies: dict[str, dict[str, float]]
    """Of candidate and current: length, end-of-turn rate, empty rate, distinct-2, duplicate rate."""
    judge: dict[str, Any]
    sampling: dict[str, Any]
    samples: list[dict[str, str]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The verdict as JSON."""
        return asdict(self)


def judge_candidate(
    policy: Policy,
    models: tuple[PreTrainedModel, PreTrainedModel],
    prompts: Sequence[Prompt],
    judge_report: dict[str, Any],
    config: RefreshConfig,
    *,
    sampling: Sampling,
    winners_direction: float,
    tell: Callable[[float, str], None],
) -> Verdict:
    """Compare `models`, (candidate, current), on `prompts`; `judge_report` is the judge's own examination."""
    chat = policy.base.format
    # Both sides draw with the same seeds: what differs is the model, and equal models write equal replies.
    ids = [chat.fit(prompt.messages, policy.base.context - sampling.max_new_tokens).ids for prompt in prompts]
    replies: list[list[Reply]] = []
    for i, (model, who) in enumerate(zip(models, ("the candidate", "what serves"), strict=True)):

        def heard(fraction: float, i: int = i, who: str = who) -> None:
            tell((i + fraction) * 0.4, f"Replaying {len(prompts)} prompts with {who}.")

        replies.append(
            sample_replies(
                model, ids, sampling=sampling, end_of_turn=chat.end_of_turn, seed=config.seed, tell=heard
            )
        )
    tell(0.8, "The judge scores both sides.")
    scores = [score_sequences(policy, "judge", [r.ids for r in side]) for side in replies]
    tell(1.0, "Weighing the result.")
    outcomes = [1.0 if new > old else 0.5 if new == old else 0.0 for new, old in zip(*scores, strict=True)]
    profiles = {name: profile(side) for name, side in zip(("candidate", "current"), replies, strict=True)}
    win_rate, interval = statistics.fmean(outcomes), bootstrap_by_group([[o] for o in outcomes], config.seed)
    reasons = [
        *check_judge(judge_report),
        *check_wins(win_rate, interval, config.margin),
        *check_replies(profiles["candidate"], profiles["current"], winners_direction),
    ]
    passed = not reasons
    return Verdict(
        passed=passed,
        reasons=reasons or [_won(win_rate, interval, len(prompts))],
        win_rate=win_rate,
        win_rate_interval=interval,
        replies=profiles,
        judge=judge_report,
        sampling=asdict(sampling),
        samples=[
            {
                "prompt": prompts[i].messages[-1]["content"],
                "candidate": chat.decode(replies[0][i].reply),
                "current": chat.decode(replies[1][i].reply),
            }
            for i in range(min(_SAMPLES_SHOWN, len(prompts)))
        ],
    )


def _won(win_rate: float, interval: list[float], prompts: int) -> str:
    return (
        f"The judge prefers the candidate on {win_rate:.0%} of {prompts} prompts "
        f"(95 % interval {interval[0]:.0%} to {interval[1]:.0%})."
    )


def check_judge(report: dict[str, Any]) -> list[str]:
    """A judge that is no better than a coin cannot judge."""
    low, high = report["accuracy_interval"]
    if low > 0.5:
        return []
    return [
        f"The judge agrees with {report['accuracy']:.0%} of held-out comparisons (95 % interval {low:.0%} to "
        f"{high:.0%}), which may be chance, so it cannot judge - collect more rankings."
    ]


def check_wins(win_rate: float, interval: list[float], margin: float) -> list[str]:
    """The candidate may not be worse than what serves, by more than the margin, with 95 % confidence."""
    if interval[0] > 0.5 - margin:
        return []
    return [
        f"The judge prefers the candidate on only {win_rate:.0%} of prompts; the lower bound, "
        f"{interval[0]:.0%}, is not above {0.5 - margin:.0%}."
    ]


def check_replies(new: dict[str, float], old: dict[str, float], winners_direction: float) -> list[str]:
    """Vetoes that votes do not drive."""
    reasons = []
    if new["empty_rate"] > old["empty_rate"] + 0.01:
        reasons.append(
            f"{new['empty_rate']:.1%} of the candidate's replies are empty, "
            f"{old['empty_rate']:.1%} of the current's."
        )
    if new["duplicate_rate"] > old["duplicate_rate"] + 0.05:
        reasons.append(
            f"{new['duplicate_rate']:.0%} of the candidate's replies repeat another prompt's reply word for "
            f"word, {old['duplicate_rate']:.0%} of the current's."
        )
    if new["distinct_2"] < 0.5 * old["distinct_2"]:
        reasons.append(
            f"The candidate repeats itself: distinct-2 is {new['distinct_2']:.2f}, "
            f"the current's {old['distinct_2']:.2f}."
        )
    if new["eos_rate"] < old["eos_rate"] - 0.10:
        reasons.append(
            f"Only {new['eos_rate']:.0%} of the candidate's replies end by themselves, "
            f"{old['eos_rate']:.0%} of the current's."
        )
    if is_length_unasked(new["length"] / max(old["length"], 1.0), winners_direction):
        reasons.append(
            f"The candidate's replies have {new['length']:.0f} tokens, the current's {old['length']:.0f}, "
            "which the rankings do not ask for."
        )
    return reasons


def profile(replies: Sequence[Reply]) -> dict[str, float]:
    """What can be counted of a set of replies without reading them."""
    bodies = [tuple(r.reply[:-1] if r.finished else r.reply) for r in replies]
    copies = Counter(body for body in bodies if body)
    return {
        "length": statistics.fmean(len(r.reply) for r in replies),
        "eos_rate": statistics.fmean(r.finished for r in replies),
        "empty_rate": statistics.fmean(not body for body in bodies),
        "duplicate_rate": sum(n for n in copies.values() if n > 1) / len(bodies),
        "distinct_2": distinct_2([r.reply for r in replies]),
    }
