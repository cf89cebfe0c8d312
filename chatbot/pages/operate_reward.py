"""What a run's reward models know, examined on rankings they never saw: the report, never a bare accuracy.

Beside the reward models, which PPO climbs, stands the judge, which decides: each was trained on one part of
the conversations and is examined on the other's.
"""

from collections.abc import Mapping
from typing import Any

from chatbot.pages.operate_charts import Chart, Point, Range, Series, chart, ranges
from chatbot.pages.operate_desk import Visit, card, figures
from chatbot.pages.operate_report import MISSING, interval, number, part, percent, rows, signed
from data import people
from data.database import Database
from data.errors import NotFound

_MODELS = ("reward", "judge")
_HELD_OUT = "held_out_"
"""How the metrics of an examination begin."""
_BASELINES = ("always_longest", "always_first_shown")
_FIGURES = (
    "rankings",
    "kendall_tau",
    "ece",
    "score_length_correlation",
    "disagreement",
    "paraphrase_flip_rate",
    "ties",
)
_OF = {"paraphrase_flip_rate": "paraphrases", "rankings": "held_out"}
"""Figures that are of so many."""


def measured_so_far(logged: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, Any]:
    """The examinations as far as they are in the metrics: for a run that has no report (yet)."""
    found: dict[str, Any] = {}
    for model in _MODELS:
        for row in logged.get(model, {}).values():
            said = {name.removeprefix(_HELD_OUT): v for name, v in row.items() if name.startswith(_HELD_OUT)}
            if said:
                found[model] = said
    return found


def reward_html(db: Database, visit: Visit, report: Mapping[str, Any]) -> str:
    """Accuracy beside its baselines, calibration, and what else was asked of both models."""
    models = {name: part(report, name) for name in _MODELS}
    models = {name: said for name, said in models.items() if number(said.get("accuracy")) is not None}
    if not models:
        return ""
    accuracy = "".join(_accuracy_html(visit, name, said) for name, said in models.items())
    columns = (
        f"<div>{accuracy}</div>",
        chart(calibration_chart(visit, models)),
        _figures_html(visit, models),
    )
    return card(
        visit.html("reward_report"),
        f"<p class='ns-quiet'>{visit.html('reward_note')}</p>"
        f"<div class='ns-charts'>{''.join(columns)}</div>"
        + _groups_html(db, visit, models, part(report.get("person_reliability"))),
    )


def _accuracy_html(visit: Visit, name: str, said: Mapping[str, Any]) -> str:
    """The share of pairs predicted, with its interval, and two baselines on the same pairs."""
    pairs, accuracy = number(said.get("pairs")), number(said["accuracy"]) or 0.0
    note = visit.say("pairs", n=round(pairs)) if pairs is not None else ""
    lines = [Range(visit.say("accuracy"), accuracy, interval(said.get("accuracy_interval")), note)]
    for baseline in _BASELINES:
        value = number(said.get(baseline))
        if value is not None:
            lines.append(Range(visit.say(baseline), value, is_baseline=True))
    return f"<h3>{visit.html(f'model_{name}')}</h3>{ranges(lines)}"


def calibration_chart(visit: Visit, models: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Of pairs that it is 80 % sure of, 80 % should come out so: the diagonal. Dots grow with pairs."""
    series = []
    for name, said in models.items():
        points = []
        for row in rows(said.get("reliability")):
            sure, right, pairs = (number(row.get(key)) for key in ("confidence", "accuracy", "pairs"))
            if sure is not None and right is not None:
                tip = visit.say("bin", sure=percent(sure), right=percent(right), n=round(pairs or 0))
                points.append(Point(sure, right, tip, radius=min(8.0, 2.5 + (pairs or 0) ** 0.5 / 3)))
        series.append(Series(visit.say(f"model_{name}"), points, 1 if name == "reward" else 0))
    return Chart(
        visit.say("reliability"), visit.say("axis_confidence"), visit.say("axis_right"), series, is_share=True
    )


def _figures_html(visit: Visit, models: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each figure that at least one of the models has."""
    lines = []
    for key in _FIGURES:
        cells = [_figure(visit, key, said) for said in models.values()]
        if any(cells):
            about = f"{visit.html(f'figure_{key}')} <small>{visit.html(f'figure_{key}_note')}</small>"
            lines.append([about, *(cell or MISSING for cell in cells)])
    head = [visit.html("figure"), *(visit.html(f"model_{name}") for name in models)]
    return figures(head, lines)


def _figure(visit: Visit, key: str, said: Mapping[str, Any]) -> str:
    value = number(said.get(key))
    if value is None:
        return ""
    if key in ("kendall_tau", "score_length_correlation"):
        return signed(value)
    if key in ("ties", "paraphrase_flip_rate"):
        shown = percent(value)
    else:
        shown = f"{value:.0f}" if key == "rankings" else f"{value:.2f}"
    of = number(said.get(_OF.get(key, "")))
    return shown + (f" <small>{visit.html('of', n=round(of))}</small>" if of else "")


def _groups_html(
    db: Database, visit: Visit, models: Mapping[str, Mapping[str, Any]], reliabilities: Mapping[str, Any]
) -> str:
    """Accuracy by person and by source, folded away: there may be many people.

    Whoever weighed less in this night, for what earlier nights had shown, is shown with their weight.
    """
    folded = []
    for group in ("person", "source"):
        shown = []
        for name, said in models.items():
            lines = []
            for key, found in part(said, f"accuracy_by_{group}").items():
                right, pairs = number(part(found).get("accuracy")), number(part(found).get("pairs"))
                if right is not None:
                    label = _person(db, key) if group == "person" else visit.known(f"source_{key}", key)
                    note = visit.say("pairs", n=round(pairs or 0))
                    if (weight := number(reliabilities.get(key))) is not None:
                        note += " · " + visit.say("relied_on", share=percent(weight))
                    lines.append(Range(label, right, note=note))
            if lines:
                shown.append(f"<div><h4>{visit.html(f'model_{name}')}</h4>{ranges(lines)}</div>")
        if shown:
            folded.append(
                f"<details class='ns-fold'><summary>{visit.html(f'by_{group}')}</summary>"
                f"<div class='ns-charts'>{''.join(shown)}</div></details>"
            )
    return "".join(folded)


def _person(db: Database, id: str) -> str:
    try:
        return people.get(db, id).name
    except NotFound:  # gone, or a report from elsewhere
        return id[:8]
