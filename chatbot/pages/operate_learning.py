"""Learning: curves of the last runs beside each other, update by update. One run has a page: operate_runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gradio as gr
import pandas as pd  # type: ignore[import-untyped]

from chatbot.pages.operate_desk import Desk, Visit, panel
from chatbot.pages.operate_runs import is_settled
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
    """One plot: a metric that the trainer logs under `stage`, by any of its names."""

    word: str
    stage: str
    metrics: tuple[str, ...]


CURVES = (
    Curve("curve_score", "ppo", ("score",)),
    Curve("curve_judge", "ppo", ("judge",)),
    Curve("curve_kl", "ppo", ("kl",)),
    Curve("curve_accuracy", "reward", ("accuracy", "reward_0_accuracy")),
    Curve("curve_length", "ppo", ("length",)),
    Curve("curve_entropy", "ppo", ("entropy",)),
)


def build_learning(desk: Desk, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the curves inside `tab`."""
    note = panel()
    plots = []
    for first in range(0, len(CURVES), 2):
        with gr.Row():
            plots += [
                gr.LinePlot(x="x", y="y", color="run", height=240, visible=False, buttons=[])
                for _ in CURVES[first : first + 2]
            ]
    outputs = [note, *plots]

    def show(request: gr.Request) -> list[Any]:
        return _drawn(desk.db, desk.open(request))

    def translate(request: gr.Request) -> Any:
        return gr.update(label=desk.open(request).say("learning"))

    def look(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        run = runs.latest(desk.db)
        if run is None or is_settled(run):
            return [gr.skip()] * len(outputs)
        return _drawn(desk.db, visit)

    page.load(translate, None, tab, show_progress="hidden")
    page.load(show, None, outputs, show_progress="hidden")
    tab.select(show, None, outputs, show_progress="hidden")
    gr.Timer(LOOKS_EVERY).tick(look, None, outputs, show_progress="hidden", concurrency_limit=None)


def _drawn(db: Database, visit: Visit) -> list[Any]:
    """The note and a plot per curve."""
    drawn = list(islice((run for run in runs.list_all(db) if runs.metrics(db, run.id)), RUNS_DRAWN))
    word = visit.html("curves_note", n=len(drawn)) if drawn else visit.html("no_curves")
    note = f"<h2 class='ns-heading'>{visit.html('curves')}</h2><p class='ns-quiet'>{word}</p>"
    return [note, *(plot(db, visit, curve, drawn) for curve in CURVES)]


def plot(db: Database, visit: Visit, curve: Curve, drawn: Sequence[Run]) -> dict[str, Any]:
    """One curve of each run; hidden where no run logged it."""
    points = [
        {"x": metric.step, "y": metric.value, "run": _short(run)}
        for run in drawn
        for metric in runs.metrics(db, run.id, curve.stage)
        if metric.name in curve.metrics
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
