"""Learning: curves of the last runs, update by update, and the table of all runs: how each ended, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import pandas as pd  # type: ignore[import-untyped]

from chatbot.pages.operate_desk import Desk, Visit, panel, table
from chatbot.pages.operate_words import duration, known, moment
from data import runs
from data.database import Database
from data.records import Run

RUNS_DRAWN = 4
LOOKS_EVERY = 15.0
"""Seconds between two drawings of the curves while a run lives."""
COLOURS = ("#6366f1", "#94a3b8", "#d97706", "#0d9488")
"""One per run drawn, newest first: readable on white and on black."""


@dataclass(frozen=True)
class Curve:
    """One plot: a metric that the trainer logs under `stage`."""

    word: str
    stage: str
    metric: str


CURVES = (
    Curve("curve_score", "ppo", "score"),
    Curve("curve_judge", "ppo", "judge"),
    Curve("curve_kl", "ppo", "kl"),
    Curve("curve_accuracy", "reward", "accuracy"),
    Curve("curve_length", "ppo", "length"),
    Curve("curve_entropy", "ppo", "entropy"),
)


def build_learning(desk: Desk, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the curves and the table of runs inside `tab`."""
    note = panel()
    plots = []
    for first in range(0, len(CURVES), 2):
        with gr.Row():
            plots += [
                gr.LinePlot(x="x", y="y", color="run", height=240, visible=False, buttons=[])
                for _ in CURVES[first : first + 2]
            ]
    listing = panel()
    outputs = [note, *plots, listing]

    def show(request: gr.Request) -> list[Any]:
        return _drawn(desk.db, desk.open(request))

    def translate(request: gr.Request) -> Any:
        return gr.update(label=desk.open(request).say("learning"))

    def look(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        run = runs.latest(desk.db)
        if run is None or run.state != "running":
            return [gr.skip()] * len(outputs)
        return _drawn(desk.db, visit)

    page.load(translate, None, tab, show_progress="hidden")
    page.load(show, None, outputs, show_progress="hidden")
    tab.select(show, None, outputs, show_progress="hidden")
    gr.Timer(LOOKS_EVERY).tick(look, None, outputs, show_progress="hidden", concurrency_limit=None)


def _drawn(db: Database, visit: Visit) -> list[Any]:
    """The note, a plot per curve, the table of runs."""
    every = runs.list_all(db, limit=50)
    drawn = [run for run in every if runs.metrics(db, run.id)][:RUNS_DRAWN]
    word = visit.html("curves_note", n=len(drawn)) if drawn else visit.html("no_curves")
    note = f"<h2 class='ns-heading'>{visit.html('curves')}</h2><p class='ns-quiet'>{word}</p>"
    return [note, *(plot(db, visit, curve, drawn) for curve in CURVES), runs_html(visit, every)]


def plot(db: Database, visit: Visit, curve: Curve, drawn: Sequence[Run]) -> dict[str, Any]:
    """One curve of each run; hidden where no run logged it."""
    points = [
        {"x": metric.step, "y": metric.value, "run": _short(run)}
        for run in drawn
        for metric in runs.metrics(db, run.id, curve.stage)
        if metric.name == curve.metric
    ]
    colours = {_short(run): colour for run, colour in zip(drawn, COLOURS, strict=False)}
    return gr.update(
        value=pd.DataFrame(points, columns=["x", "y", "run"]),
        title=visit.say(curve.word),
        x_title=visit.say("update" if curve.stage == "ppo" else "step"),
        y_title=" ",
        color_title=visit.say("run"),
        color_map=colours,
        visible=bool(points),
    )


def _short(run: Run) -> str:
    """A run's name in a legend: the version it made, else the beginning of its slot."""
    return run.version or run.key[:16]


def runs_html(visit: Visit, every: Sequence[Run]) -> str:
    """A row per run, newest first: how it ended, how long it took, and why."""
    heading = f"<h2 class='ns-heading'>{visit.html('runs')}</h2>"
    if not every:
        return heading + f"<p class='ns-empty'>{visit.html('no_runs')}</p>"
    rows = [
        [
            _key(visit, run),
            _state(visit, run),
            escape(run.version or ""),
            f"<span class='ns-key'>{moment(run.started_at, visit.zone)}</span>",
            f"<span class='ns-key'>{_took(visit, run)}</span>",
            escape(run.reason or run.message),
        ]
        for run in every
    ]
    head = [visit.html(key) for key in ("run", "state", "version", "started", "took", "outcome")]
    return heading + table(head, rows)


def _took(visit: Visit, run: Run) -> str:
    return duration(run.finished_at - run.started_at, visit.language) if run.finished_at else ""


def _key(visit: Visit, run: Run) -> str:
    """The slot it was for, or that somebody asked for it."""
    name = visit.html("by_hand") if run.key.startswith("manual-") else escape(run.key.replace("T", " "))
    return f"<span class='ns-key' title='{escape(run.key)}'>{name}</span>"


def _state(visit: Visit, run: Run) -> str:
    word = escape(known(f"state_{run.state}", visit.language, run.state))
    return f"<span class='ns-state ns-{escape(run.state)}'>{word}</span>"
