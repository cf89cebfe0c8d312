"""Runs: one of them as a page, live while it learns, and below it the table of all: how each ended, and why.

The page follows the run's row by two timers, one for the stage and one for what was measured. Which run is
looked at is the browser's word: an unknown one shows the newest.
"""

import time
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from chatbot.pages.operate_desk import Desk, Visit, panel, table
from chatbot.pages.operate_run import body_html, head_html, name_html, report_of, state_html
from chatbot.pages.operate_words import duration, known, moment
from data import runs
from data.database import Database
from data.errors import NotFound
from data.records import Run

LOOKS_EVERY = 2.0
"""Seconds between two looks at the run's row."""
DRAWS_EVERY = 15.0
"""Seconds between two drawings of what it measured."""
LISTED = 50
NEWEST = "newest"
"""What the choice says where it follows whichever run was claimed last."""


def build_runs(desk: Desk, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the choice, the page of the chosen run and the table of all inside `tab`."""
    with gr.Row(elem_classes="ns-buttons"):
        choice = gr.Dropdown(choices=[], interactive=True, scale=0, min_width=340)
    # Timers ask for this copy: a dropdown refuses a value that a restarted server has not offered.
    wanted = gr.Textbox(NEWEST, visible=False)
    head, body, listing = panel(), panel(), panel()

    def show(wanted: str | None, request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        return [
            gr.update(label=visit.say("runs")),
            choices(desk.db, visit, wanted),
            *_page(desk, visit, wanted),
            runs_html(visit, runs.list_all(desk.db, LISTED)),
        ]

    def choose(chosen: str | None, request: gr.Request) -> list[Any]:
        return [chosen, *_page(desk, desk.open(request), chosen)]

    def look(wanted: str | None, request: gr.Request) -> Any:
        visit = desk.open(request)
        run = find(desk.db, wanted)
        return gr.skip() if run is None or is_settled(run) else head_html(visit, run)

    def draw(wanted: str | None, request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        run = find(desk.db, wanted)
        if run is None or is_settled(run):
            return [gr.skip(), gr.skip()]
        return [
            _page(desk, visit, wanted)[1],
            runs_html(visit, runs.list_all(desk.db, LISTED)),
        ]

    outputs = [tab, choice, head, body, listing]
    page.load(show, wanted, outputs, show_progress="hidden")
    tab.select(show, wanted, outputs, show_progress="hidden")
    choice.input(choose, choice, [wanted, head, body], show_progress="hidden")
    gr.Timer(LOOKS_EVERY).tick(look, wanted, head, show_progress="hidden", concurrency_limit=None)
    gr.Timer(DRAWS_EVERY).tick(draw, wanted, [body, listing], show_progress="hidden", concurrency_limit=None)


def find(db: Database, wanted: str | None) -> Run | None:
    """The run asked for, else the newest; None where none ever ran."""
    try:
        return runs.get(db, wanted or NEWEST)
    except NotFound:
        return runs.latest(db)


def is_settled(run: Run) -> bool:
    """Whether a run ended so long ago that every open page has drawn its end."""
    return run.finished_at is not None and time.time() - run.finished_at > 2 * DRAWS_EVERY


def choices(db: Database, visit: Visit, wanted: str | None) -> dict[str, Any]:
    """The dropdown: the newest run, whichever that is, and each by its time and outcome."""
    every = runs.list_all(db, LISTED)
    offered = [(visit.say("newest_run"), NEWEST), *((_title(visit, run), run.id) for run in every)]
    chosen = wanted if any(wanted == value for _, value in offered) else NEWEST
    return gr.update(label=visit.say("run_which"), choices=offered, value=chosen, visible=len(every) > 1)


def _title(visit: Visit, run: Run) -> str:
    state = known(f"state_{run.state}", visit.language, run.state)
    return " · ".join(filter(None, (moment(run.started_at, visit.zone), state, run.version)))


def _page(desk: Desk, visit: Visit, wanted: str | None) -> list[str]:
    """The chosen run's head and body; nothing before the first run."""
    run = find(desk.db, wanted)
    if run is None:
        return ["", ""]
    return [head_html(visit, run), body_html(desk.db, visit, run, report_of(desk.db, desk.home, run))]


# ---------------------------------------------------------------------------------------------------------
# All runs


def runs_html(visit: Visit, every: Sequence[Run]) -> str:
    """A row per run, newest first: how it ended, how long it took, and why."""
    heading = f"<h2 class='ns-heading'>{visit.html('all_runs')}</h2>"
    if not every:
        return heading + f"<p class='ns-empty'>{visit.html('no_runs')}</p>"
    rows = [
        [
            name_html(visit, run),
            state_html(visit, run),
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
