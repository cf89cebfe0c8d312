"""The gate: is the candidate better than what serves, and no worse elsewhere?

In order, each with its figure in the report; any failure is a sentence, and what serves stays:

1. the files: publish.py makes the server's own check of them and refuses a change that is zero;
2. the judge: on rankings of other conversations than it was trained on, better than a coin (refresh.py asks
   this before there is a candidate, since without a judge there need be none);
3. the replay: one reply each from candidate and current to prompts no selection saw, scored by the judge
   (never by PPO's own reward): the lower bound of the win rate must exceed one half less a margin;
4. vetoes that no vote can buy off: replies that look empty, are repeated or never end, lengths nobody asked
   for, and what probes.py finds: refusals, loops, and knowledge of language and of the world that is gone.

A refusal is a normal, recorded outcome. Left out on purpose: people's votes on the candidate itself.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.policy import Policy
from data.cli import table
from data.records import Prompt, Sampling
from data.runfolder import JUDGE
from trainer.config import RefreshConfig
from trainer.forward import Reply
from trainer.guards import is_length_unasked
from trainer.intervals import bootstrap_by_group, by_group
from trainer.probes import check_probes
from trainer.reward import scores_of
from trainer.rollout import distinct_2
from trainer.sampler import sample_replies
from trainer.telling import Done, nobody

_SIDES = ("candidate", "current")
_SAMPLES_SHOWN = 10
_SHORT = 5
"""Tokens up to which replies to different prompts may be alike."""
_FEW, _OFTEN = 2, 0.05
"""But no reply may answer more prompts than these, nor more than this share of them."""
_LINE = 90
"""Characters of a prompt or reply in the terminal."""
Probes = tuple[dict[str, float], dict[str, float]]
"""What probes.probe found of candidate and current."""


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and all it measured."""

    passed: bool
    reasons: list[str]
    """Why not, or, where it passed, by how much."""
    sentences: list[str]
    """What was measured and what came of it, for a person, whatever the verdict."""
    win_rate: float
    win_rate_interval: list[float]
    replies: dict[str, dict[str, float]]
    """Of candidate and current: length, end-of-turn rate, empty rate, distinct-2, duplicate rate."""
    probes: dict[str, dict[str, float]]
    """Of candidate and current: the figures of probes.py."""
    judge: dict[str, Any]
    sampling: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Replies of both to the same prompts, with the judge's score of each."""

    def report(self) -> dict[str, Any]:
        """The verdict as JSON."""
        return asdict(self)


def judge_candidate(
    policy: Policy,
    replies: tuple[list[Reply], list[Reply]],
    prompts: Sequence[Prompt],
    judge_report: dict[str, Any],
    config: RefreshConfig,
    *,
    sampling: Sampling,
    length_preference: float,
    probes: Probes,
    tell: Callable[[float, str], None],
) -> Verdict:
    """Compare what candidate and current said to `prompts`: their `replies`, one each to each.

    `judge_report` is the judge's own examination, `length_preference` the rankings' taste for length, and
    `probes` what probes.probe found of each; a figure that one lacks vetoes nothing.
    """
    tell(0.0, "The judge scores both sides.")
    scores = [scores_of(policy, JUDGE, side) for side in replies]
    tell(1.0, "Weighing the result.")
    outcomes = [1.0 if new > old else 0.5 if new == old else 0.0 for new, old in zip(*scores, strict=True)]
    decode = policy.base.format.decode
    profiles = {name: profile(side, decode) for name, side in zip(_SIDES, replies, strict=True)}
    chats = by_group(zip((prompt.group for prompt in prompts), outcomes, strict=True))
    win_rate, interval = statistics.fmean(outcomes), bootstrap_by_group(list(chats.values()), config.seed)
    won = _won(win_rate, interval, len(prompts), len(chats))
    reasons = [
        *check_judge(judge_report),  # a night asked before stage 3; the gate does not rely on it
        *check_wins(win_rate, interval, config.margin),
        *check_replies(profiles["candidate"], profiles["current"], length_preference, len(prompts)),
        *check_probes(*probes),
    ]
    return Verdict(
        passed=not reasons,
        reasons=reasons or [won],
        sentences=[_judged(judge_report), won, *_probed(*probes), _concluded(reasons, config.margin)],
        win_rate=win_rate,
        win_rate_interval=interval,
        replies=profiles,
        probes=dict(zip(_SIDES, probes, strict=True)),
        judge=judge_report,
        sampling=asdict(sampling),
        samples=_samples(policy, prompts, replies, scores),
    )


def replay(
    model: PreTrainedModel,
    base: Base,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    seed: int,
    tell: Done = nobody,
) -> list[Reply]:
    """One reply of `model`, a plain build on `base`, to each prompt; `tell` hears the fraction done.

    Both sides draw with the same seeds: what differs is the model, and equal models write equal replies.
    """
    chat = base.format
    ids = [chat.fit(prompt.messages, base.context - sampling.max_new_tokens).ids for prompt in prompts]
    return sample_replies(model, ids, sampling=sampling, end_of_turn=chat.end_of_turn, seed=seed, tell=tell)


def _samples(
    policy: Policy, prompts: Sequence[Prompt], replies: Sequence[list[Reply]], scores: list[list[float]]
) -> list[dict[str, Any]]:
    """The first few prompts with what both sides said and what the judge thought of it.

    People's own turns are not shown: a report stays with its version, and stands in a log.
    """
    shown = [i for i, prompt in enumerate(prompts) if prompt.turn_id is None][:_SAMPLES_SHOWN]
    return [
        {"prompt": prompts[i].messages[-1]["content"]}
        | {name: policy.base.format.decode(side[i].reply) for name, side in zip(_SIDES, replies, strict=True)}
        | {f"{name}_score": side[i] for name, side in zip(_SIDES, scores, strict=True)}
        for i in shown
    ]


def _won(win_rate: float, interval: list[float], prompts: int, dialogues: int) -> str:
    """Prompts of one dialogue count as one in the interval, which may be wide for so many prompts."""
    many = f"{prompts} prompts" + (f" of {dialogues} dialogues" if dialogues < prompts else "")
    sure = f"(95 % interval {interval[0]:.0%} to {interval[1]:.0%})"
    return f"The judge prefers the candidate on {win_rate:.0%} of {many} {sure}."


def _judged(report: dict[str, Any]) -> str:
    low, high = report["accuracy_interval"]
    return (
        f"The judge, trained on other conversations than the reward, agrees with {report['accuracy']:.0%} of "
        f"held-out comparisons (95 % interval {low:.0%} to {high:.0%})."
    )


def _probed(new: dict[str, float], old: dict[str, float]) -> list[str]:
    """One sentence a probe that both sides went through."""
    told = {
        "refusal_rate": "The candidate refuses {new:.0%} of harmless prompts that sound dangerous, "
        "the current {old:.0%}.",
        "repetition": "{new:.1%} of its replies to them is said again, {old:.1%} of the current's.",
        "perplexity": "The candidate's perplexity on a fixed text is {new:.1f}, the current's {old:.1f}.",
        "capability": "The candidate solves {new:.0%} of short items of everyday knowledge, "
        "the current {old:.0%}.",
    }
    return [text.format(new=new[k], old=old[k]) for k, text in told.items() if k in new and k in old]


def _concluded(reasons: list[str], margin: float) -> str:
    if reasons:
        return f"Refused for {len(reasons)} reason{'s' * (len(reasons) > 1)}; what serves stays."
    return f"Accepted: the lower bound lies above {0.5 - margin:.0%}, and no veto speaks against it."


def check_judge(report: dict[str, Any]) -> list[str]:
    """A judge that is no better than a coin cannot judge."""
    low, high = report["accuracy_interval"]
    if low > 0.5:
        return []
    return [
        f"The judge agrees with {report['accuracy']:.0%} of held-out comparisons (95 % interval {low:.0%} to "
        f"{high:.0%}), which may be chance, so it cannot judge - rank replies in more conversations."
    ]


def check_wins(win_rate: float, interval: list[float], margin: float) -> list[str]:
    """The candidate may not be worse than what serves, by more than the margin, with 95 % confidence."""
    low, least = interval[0], 0.5 - margin
    told = f"on {win_rate:.0%} of prompts; the lower bound, {low:.0%}, is not above {least:.0%}."
    return [] if low > least else [f"The judge prefers the candidate {told}"]


def check_replies(
    new: dict[str, float], old: dict[str, float], length_preference: float, count: int
) -> list[str]:
    """Vetoes that votes do not drive, on `count` replies of each side.

    Of empty replies a rise by more than two standard errors is too much, and where there was none, more than
    one reply: some 4,000 of the embedded base had none.
    """
    reasons = []
    empty, was_empty = round(new["empty_rate"] * count), round(old["empty_rate"] * count)
    if empty - was_empty > (2 * math.sqrt(empty + was_empty) if was_empty else 1):
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
    if is_length_unasked(new["length"] / max(old["length"], 1.0), length_preference):
        reasons.append(
            f"The candidate's replies have {new['length']:.0f} tokens, the current's {old['length']:.0f}, "
            "which the rankings do not ask for."
        )
    return reasons


def profile(replies: Sequence[Reply], decode: Callable[[Sequence[int]], str]) -> dict[str, float]:
    """What can be counted of a set of replies without understanding them; `decode` gives what a person sees.

    A few short replies that are alike are no duplicates: "You're welcome!" is right more than once.
    """
    said = [" ".join(decode(r.reply).split()) for r in replies]
    size = {words: len(r.reply) - r.finished for words, r in zip(said, replies, strict=True)}
    copies = Counter(words for words in said if words)
    most = max(_FEW, _OFTEN * len(replies))
    duplicates = [n for words, n in copies.items() if n > (1 if size[words] > _SHORT else most)]
    return {
        "length": statistics.fmean(len(r.reply) for r in replies),
        "eos_rate": statistics.fmean(r.finished for r in replies),
        "empty_rate": statistics.fmean(not words for words in said),
        "duplicate_rate": sum(duplicates) / len(replies),
        "distinct_2": distinct_2([r.reply for r in replies]),
    }


def report_lines(gate: Mapping[str, Any]) -> list[str]:
    """The report of a verdict, `Verdict.report()`, for the terminal; an old one may have no probes."""
    sides = [{**gate["replies"][side], **(gate["probes"] or {}).get(side, {})} for side in _SIDES]
    rows = [
        [key.replace("_", " "), *(f"{side[key]:.3g}" if key in side else "-" for side in sides)]
        for key in sides[1]
    ]
    sampling = gate["sampling"]
    lines = [*gate["sentences"], "", *table(["measured", *_SIDES], rows), ""]
    heat, limit = sampling["temperature"], sampling["max_new_tokens"]
    lines.append(f"Replies drawn at temperature {heat:g}, at most {limit} tokens.")
    for sample in gate["samples"]:
        lines += ["", f"> {_shortly(sample['prompt'])}"]
        for side in _SIDES:
            score = sample[f"{side}_score"]
            lines.append(
                f"  {side:9} {'  -  ' if score is None else f'{score:+.2f}'}  {_shortly(sample[side])}"
            )
    if not gate["passed"]:
        lines += ["", *gate["reasons"]]
    return lines


def _shortly(text: str) -> str:
    """A text on one line of a terminal, without characters that would command it."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= _LINE else line[: _LINE - 3] + "..."
