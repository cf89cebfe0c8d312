"""The schedule: when a refresh is due, how many new rankings it needs, a pause. Below, what operators did.

A schedule that names no time is refused with the sentence of the command line (data/cron.py). The next times
are the trainer's own words (data/forecast.py), so that they come only where a trainer runs.
"""

import time
from html import escape
from typing import Any
from zoneinfo import available_timezones

import gradio as gr

from chatbot.pages.operate_desk import Desk, Visit, attempt, card, panel, table
from chatbot.pages.operate_words import moment
from data import audit, forecast, schedules
from data import cron as crons
from data.database import Database
from data.errors import Refused
from data.records import Schedule

LOOKS_EVERY = 5.0
"""Seconds between two looks at what the trainer made of the schedule."""
LOG_LENGTH = 20


def build_schedule(desk: Desk, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the form, the next times and the log inside `tab`."""
    with gr.Row(elem_classes="ns-columns"):
        with gr.Column(scale=3):
            cron = gr.Textbox(max_lines=1)
            # What is typed is refused here with our sentence: Gradio would put the old zone in place of an
            # unknown one, and log a traceback for a number below a `minimum` of the field.
            zone = gr.Dropdown(sorted(available_timezones()), filterable=True, allow_custom_value=True)
            minimum = gr.Number(precision=0)
            paused = gr.Checkbox()
            hint = panel()
            save = gr.Button(variant="primary", scale=0, min_width=200)
        with gr.Column(scale=2):
            times = panel()
    log = panel()
    fields = [cron, zone, minimum, paused]

    def show(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        return [
            gr.update(label=visit.say("schedule")),
            *_fields(visit, schedules.get(desk.db)),
            f"<p class='ns-quiet ns-hint'>{visit.html('cron_info')}</p>",
            gr.update(value=visit.say("save")),
            times_html(desk.db, visit),
            log_html(desk.db, visit),
        ]

    def look(request: gr.Request) -> list[str]:
        visit = desk.open(request)
        return [times_html(desk.db, visit), log_html(desk.db, visit)]

    def store(cron: str, zone: str, minimum: float | None, paused: bool, request: gr.Request) -> list[str]:
        visit = desk.open(request)
        attempt(lambda: _save(desk.db, visit, cron, zone, minimum, paused))
        return [times_html(desk.db, visit), log_html(desk.db, visit)]

    page.load(show, None, [tab, *fields, hint, save, times, log], show_progress="hidden")
    save.click(store, fields, [times, log], show_progress="hidden")
    gr.Timer(LOOKS_EVERY).tick(look, None, [times, log], show_progress="hidden", concurrency_limit=None)


def _fields(visit: Visit, schedule: Schedule) -> list[Any]:
    return [
        gr.update(label=visit.say("cron"), value=schedule.cron),
        gr.update(label=visit.say("zone"), value=schedule.zone),
        gr.update(label=visit.say("minimum"), info=visit.say("minimum_info"), value=schedule.min_rankings),
        gr.update(label=visit.say("paused"), info=visit.say("paused_info"), value=schedule.is_paused),
    ]


def _save(db: Database, visit: Visit, cron: str, zone: str, minimum: float | None, paused: bool) -> str:
    """Store the form. Raises Refused, and keeps the schedule of before, where it could never come due."""
    if zone not in available_timezones():
        raise Refused(visit.say("no_zone", zone=zone))
    if minimum is None or minimum < 1:
        raise Refused(visit.say("no_minimum"))
    cron = " ".join(cron.split())
    crons.validate(cron, zone)
    schedules.set_(db, Schedule(cron, zone, int(minimum), bool(paused)), visit.person.name)
    return visit.say("saved")


def times_html(db: Database, visit: Visit) -> str:
    """The next times in the schedule's zone, or why there are none."""
    schedule = schedules.get(db)
    told = forecast.told(db, schedule)
    if schedule.is_paused:
        body = f"<p>{visit.html('is_paused')}</p>"
    elif told is None:
        body = f"<p class='ns-quiet'>{visit.html('next_wait')}</p>"
    elif told.problem:
        body = f"<p role='alert' class='ns-problem'>{escape(told.problem)}</p>"
    else:
        ahead = [at for at in told.times if at > time.time()]
        body = (
            "<ol class='ns-times'>"
            + "".join(f"<li>{moment(at, schedule.zone)}</li>" for at in ahead)
            + "</ol>"
        )
    return card(f"{visit.html('next_times')} <small>{escape(schedule.zone)}</small>", body)


def log_html(db: Database, visit: Visit) -> str:
    """The last things that operators did."""
    heading = f"<h2 class='ns-heading'>{visit.html('log')}</h2>"
    done = [entry for entry in audit.entries(db, limit=2 * LOG_LENGTH) if entry.action != forecast.READ]
    if not done:
        return heading + f"<p class='ns-empty'>{visit.html('no_log')}</p>"
    rows = [
        [
            f"<span class='ns-key'>{moment(entry.at, visit.zone)}</span>",
            escape(entry.person),
            escape(entry.action.replace("_", " ")),
            escape(
                ", ".join(
                    f"{key}: {value}"
                    for key, value in entry.detail.items()
                    if key != "run_id" and value not in (None, False)
                )
            ),
        ]
        for entry in done[:LOG_LENGTH]
    ]
    return heading + table([visit.html(key) for key in ("when", "who", "what", "detail")], rows)
