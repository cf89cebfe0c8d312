"""How a run practised, update by update: the charts that tell learning from over-optimisation.

First of all the judge's score against sqrt(KL), after Gao et al. 2022 (arXiv 2210.10760): as the policy moves
away from its reference, the reward model's own score goes on rising when the judge's no longer does.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from chatbot.pages.operate_charts import Chart, Point, Series, chart
from chatbot.pages.operate_desk import Visit, card
from chatbot.pages.operate_report import number, part, rows, signed
from data.records import Metric, Run

Steps = Mapping[int, Mapping[str, float]]
"""The finite numbers of a stage: step -> name -> value, in order."""

_PRACTICE = ("ppo", "bestofk")
_CURVES = (
    ("chart_kl", (("kl", "line_kl"), ("start_kl", "line_start_kl"))),
    ("chart_length", (("length", "line_length"),)),
    ("chart_disagreement", (("disagreement", "line_disagreement"),)),
    ("chart_variety", (("eos_rate", "line_eos_rate"), ("distinct_2", "line_distinct_2"))),
    ("chart_entropy", (("entropy", "line_entropy"),)),
)
"""Chart by update: its title, and the metrics in it with their words."""


def steps_by_stage(metrics: Sequence[Metric]) -> dict[str, dict[int, dict[str, float]]]:
    """stage -> step -> name -> value, in order; what is no finite number is left out."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for metric in metrics:
        if math.isfinite(metric.value):
            found.setdefault(metric.stage, {}).setdefault(metric.step, {})[metric.name] = metric.value
    return found


def practice_html(visit: Visit, run: Run, logged: Mapping[str, Steps], report: Mapping[str, Any]) -> str:
    """The charts of a run's updates, the kept one marked, and the losses of a fine-tuning; "" without any."""
    steps = next((logged[stage] for stage in _PRACTICE if stage in logged), {})
    best = number(part(report, "ppo").get("best_update"))
    kept = round(best) if best is not None and run.state != "running" else None
    drawn = [
        chart(against_kl(visit, run, steps, kept)),
        chart(by_update(visit, run, steps, kept)),
        *(_curve(visit, run, title, lines, steps) for title, lines in _CURVES),
        chart(imitation(visit, logged.get("sft", {}))),
    ]
    if not any(drawn):
        return ""
    return card(visit.html("practice"), f"<div class='ns-charts'>{''.join(drawn)}</div>")


def against_kl(visit: Visit, run: Run, steps: Steps, kept: int | None) -> Chart:
    """Judge and score over sqrt(KL from the reference): a point per update, the kept one marked."""
    # An estimate of a KL near 0 may fall below it.
    at = {step: math.sqrt(max(0.0, row["kl"])) for step, row in steps.items() if "kl" in row}
    titles = (visit.say("chart_against_kl"), visit.say("axis_sqrt_kl"))
    return _scored(visit, run, titles, at, steps, kept)


def by_update(visit: Visit, run: Run, steps: Steps, kept: int | None) -> Chart:
    """The same two scores, update by update."""
    titles = (visit.say("chart_by_update"), visit.say("update"))
    return _scored(visit, run, titles, {step: float(step) for step in steps}, steps, kept)


def _scored(
    visit: Visit, run: Run, titles: tuple[str, str], at: Mapping[int, float], steps: Steps, kept: int | None
) -> Chart:
    """Judge and score over `at`: where each update lies. What is drawn last, the judge, lies on top."""

    def line(name: str, colour: int) -> Series:
        there = [(step, steps[step]) for step in at if name in steps[step]]
        points = [Point(at[step], row[name], _tip(visit, step, row)) for step, row in there]
        return Series(visit.say(f"line_{name}"), points, colour)

    mark = None
    if kept is not None and kept in at and "judge" in steps[kept]:
        word = "mark_published" if run.state == "published" else "mark_kept"
        mark = (at[kept], steps[kept]["judge"], visit.say(word, update=kept))
    title, axis = titles
    return Chart(title, axis, visit.say("axis_score"), [line("score", 1), line("judge", 0)], mark)


def _tip(visit: Visit, step: int, row: Mapping[str, float]) -> str:
    said = [f"{visit.say('update')} {step}"]
    said += [f"{visit.say(f'line_{name}')} {signed(row[name])}" for name in ("judge", "score") if name in row]
    said += [f"KL {row['kl']:.1f}"] if "kl" in row else []
    return ", ".join(said)


def _curve(visit: Visit, run: Run, title: str, lines: Sequence[tuple[str, str]], steps: Steps) -> str:
    series = [_line(visit, word, steps, name, colour) for colour, (name, word) in enumerate(lines)]
    limit = number(run.config.get("max_kl")) if title == "chart_kl" else None
    named = (limit, visit.say("limit_kl", nats=f"{limit:g}")) if limit is not None else None
    unit = visit.say(f"{title}_axis")
    return chart(Chart(visit.say(title), visit.say("update"), unit, series, limit=named))


def _line(visit: Visit, word: str, steps: Steps, name: str, colour: int) -> Series:
    """One metric over the steps that have it."""
    found = [(step, row[name]) for step, row in steps.items() if name in row]
    return Series(visit.say(word), [Point(step, y, f"{step}: {y:.3g}") for step, y in found], colour)


def imitation(visit: Visit, steps: Steps) -> Chart:
    """The losses of a fine-tuning on demonstrations."""
    names = ("held_out_loss", "loss")
    series = [_line(visit, f"line_{name}", steps, name, colour) for colour, name in enumerate(names)]
    return Chart(visit.say("chart_imitation"), visit.say("step"), visit.say("axis_loss"), series)


# ---------------------------------------------------------------------------------------------------------
# Replies sampled on the way


def replies_html(visit: Visit, samples: object) -> str:
    """What the policy wrote at some updates, folded away; nothing where the report holds no texts."""
    folded = []
    for update, replies in samples.items() if isinstance(samples, dict) else ():
        shown = [text for row in rows(replies) if (text := _reply_html(row))]
        summary = f"<summary>{visit.html('replies_at', update=update)}</summary>"
        folded.append(f"<details class='ns-fold'>{summary}{''.join(shown)}</details>" if shown else "")
    return "".join(folded)


def _reply_html(row: Mapping[str, Any]) -> str:
    prompt, reply, score = row.get("prompt"), row.get("reply"), number(row.get("score"))
    if not isinstance(prompt, str) or not isinstance(reply, str):
        return ""
    said = f"<h4><span class='ns-quiet'>{signed(score)}</span></h4>" if score is not None else ""
    return (
        f"<article class='ns-sample'><p class='ns-prompt' dir='auto'>{escape(prompt)}</p>{said}"
        f"<div class='ns-text' dir='auto' tabindex='0'>{escape(reply)}</div></article>"
    )
