"""The overview: which version serves and why, what a refresh does, and the buttons that start or stop one.

The page follows the run's row by a timer, so it survives a reload and a restart of either process. It trains
nothing itself: Refresh now leaves a request in the database, and `trainer watch` takes it from there.
"""

import time
from html import escape
from typing import Any

import gradio as gr

from chatbot.following import Answering
from chatbot.pages.operate_desk import Desk, Visit, attempt, card, panel, verdict
from chatbot.pages.operate_words import duration, known, moment
from data import people, requests, runs, schedules, versions
from data.backups import backup_files, newest_at
from data.database import Database
from data.errors import Refused
from data.formats import FORMATS
from data.records import BASE_VERSION, FEWEST_RANKINGS, Run
from data.recovery import backup_problem
from data.snapshots import count_taught

LOOKS_EVERY = 2.0
"""Seconds between two looks at the run's row."""
MOST_COUNTED = 10_000
"""New rankings, so that counting takes no longer the more there are."""
_LATE_SECONDS = 2 * 86400.0
"""A last backup older than this is an alert: nobody makes them."""


def build_now(desk: Desk, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the overview inside `tab`."""
    serving = panel()
    progress = panel()
    with gr.Row(elem_classes="ns-buttons"):
        refresh = gr.Button(variant="primary", scale=0, min_width=200)
        cancel = gr.Button(variant="secondary", scale=0, min_width=200)
    backups = panel()
    outputs = [serving, progress, backups, refresh, cancel]

    def show(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        return [gr.update(label=visit.say("overview")), *_shown_now(desk, visit)]

    def look(request: gr.Request) -> list[Any]:
        return _shown_now(desk, desk.open(request))

    def ask(request: gr.Request) -> list[Any]:
        visit = desk.open(request)

        def action() -> str:
            requests.ask(desk.db, visit.person)
            return visit.say("request_taken")

        attempt(action)
        return _shown_now(desk, visit)

    def stop(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        attempt(lambda: _cancel(desk.db, visit))
        return _shown_now(desk, visit)

    page.load(show, None, [tab, *outputs], show_progress="hidden")
    gr.Timer(LOOKS_EVERY).tick(look, None, outputs, show_progress="hidden", concurrency_limit=None)
    refresh.click(ask, None, outputs, show_progress="hidden")
    cancel.click(stop, None, outputs, show_progress="hidden")


def _shown_now(desk: Desk, visit: Visit) -> list[Any]:
    """What the overview shows at this moment: three panels and the state of the two buttons."""
    run = runs.latest(desk.db)
    is_running = run is not None and run.is_alive(time.time())
    is_waiting = requests.pending(desk.db) is not None
    return [
        serving_html(desk.db, visit, desk.answering()),
        refresh_html(desk, visit, run, is_waiting),
        backup_html(desk, visit, time.time()),
        gr.update(value=visit.say("refresh_now"), interactive=not is_running and not is_waiting),
        gr.update(value=visit.say("cancel"), visible=is_running or is_waiting),
    ]


def _cancel(db: Database, visit: Visit) -> str:
    """Take back a request that no run has taken, or ask the living run to stop."""
    if requests.withdraw(db, visit.person):
        return visit.say("request_withdrawn")
    run = runs.latest(db)
    if run is None or run.state != "running":
        raise Refused(visit.say("nothing_to_cancel"))
    runs.request_cancel(db, run.id)
    return visit.say("cancel_asked")


# ---------------------------------------------------------------------------------------------------------
# What serves


def serving_html(db: Database, visit: Visit, answering: Answering) -> str:
    """The version that answers: since when, learned from what, and why it may, or why not the chosen one."""
    serving = versions.serving(db)
    version = versions.get(db, answering.version)
    is_chosen = version.name == serving.current
    facts = [visit.html("base_version")]
    if version.name != BASE_VERSION:
        facts = [
            visit.html("learned_from", n=version.rankings),
            visit.html("parent", parent=version.parent),
        ]
    if is_chosen and serving.changed_at:
        facts.append(visit.html("since", at=moment(serving.changed_at, visit.zone)))
    sentences = verdict(version)
    if is_chosen and serving.reason != " ".join(sentences):
        sentences.insert(0, serving.reason)
    why = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return card(
        visit.html("serving"),
        ("" if is_chosen else _waiting_html(visit, serving.current, answering.problem))
        + f"<p class='ns-big'>{escape(version.name)}</p>"
        f"<p class='ns-quiet'>{' · '.join(facts)}</p>"
        f"<p class='ns-lineage'>{_lineage(db, version.name)}</p>"
        + (f"<h3>{visit.html('why')}</h3><ul class='ns-why'>{why}</ul>" if why else ""),
    )


def _waiting_html(visit: Visit, chosen: str, problem: str | None) -> str:
    """Why the chosen version does not answer yet: it is being loaded, or cannot be."""
    if problem:
        return f"<p role='alert' class='ns-problem'>{escape(problem)}</p>"
    return f"<p role='status'>{visit.html('chosen', name=chosen)}</p>"


def _lineage(db: Database, name: str) -> str:
    """base -> v000001 -> v000002, as HTML; a long line of ancestors is cut in the middle."""
    line = versions.line_of(db, name)
    shown = line[::-1] if len(line) <= 6 else [line[-1], "…", *line[3::-1]]
    return " <span aria-hidden='true'>→</span> ".join(f"<span>{escape(step)}</span>" for step in shown)


# ---------------------------------------------------------------------------------------------------------
# What a refresh is doing


def refresh_html(desk: Desk, visit: Visit, run: Run | None, is_waiting: bool) -> str:
    """A living run's stage, bar, message and time left; else what would start the next one."""
    parts = [bar_html(visit, run)] if run is not None and run.is_alive(time.time()) else []
    if is_waiting:
        key = "requested" if desk.config.trainer else "requested_no_trainer"
        parts.append(f"<p role='status'>{visit.html(key)}</p>")
    if not parts:
        parts.append(f"<p>{visit.html('idle')}</p>")
    new = desk.count_rankings(desk.db, runs.learned_until(desk.db), MOST_COUNTED)
    missing = FEWEST_RANKINGS - count_taught(desk.db, most=FEWEST_RANKINGS)
    need = max(schedules.get(desk.db).min_rankings, new + missing if missing else 0)
    counted: int | str = f"{MOST_COUNTED:,}+" if new == MOST_COUNTED else new
    parts.append(f"<p class='ns-quiet'>{visit.html('new_rankings', n=counted, need=need)}</p>")
    if run is not None and run.state != "running":
        parts.append(last_run_html(visit, run))
    return card(visit.html("refresh"), "".join(parts))


def bar_html(visit: Visit, run: Run) -> str:
    """The progress bar of a living run, readable by a screen reader too."""
    percent = round(100 * min(1.0, max(0.0, run.progress)))
    stage = escape(known(f"stage_{run.stage or 'starting'}", visit.language, run.stage))
    left = visit.html("no_eta")
    if run.eta_seconds is not None:
        left = visit.html("left", time=duration(run.eta_seconds, visit.language))
    note = visit.html("cancelling") if run.cancel_requested else escape(run.message)
    return (
        f"<p class='ns-stage'><strong>{stage}</strong><span>{percent} % · {left}</span></p>"
        f"<div class='ns-bar' role='progressbar' aria-label='{stage}' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{percent}'><div style='width:{percent}%'></div></div>"
        f"<p class='ns-quiet' aria-live='polite'>{note}</p>"
    )


def last_run_html(visit: Visit, run: Run) -> str:
    """How the last run ended, and why."""
    state = escape(known(f"state_{run.state}", visit.language, run.state))
    at = moment(run.finished_at or run.started_at, visit.zone)
    made = f" <strong>{escape(run.version)}</strong>" if run.version else ""
    return (
        f"<p>{visit.html('last_run')}: <span class='ns-state ns-{escape(run.state)}'>{state}</span>{made} "
        f"<span class='ns-quiet'>{at}</span></p><p class='ns-quiet'>{escape(run.reason)}</p>"
    )


# ---------------------------------------------------------------------------------------------------------
# What would be lost


def backup_html(desk: Desk, visit: Visit, now: float) -> str:
    """When the last backup was made, an alert where the day's failed or nobody makes any, and downloads."""
    newest = newest_at(desk.home, now)
    if newest is None:
        body = f"<p>{visit.html('no_backup')}</p>"
    else:
        at, number = moment(newest, visit.zone), len(backup_files(desk.home))
        body = f"<p>{visit.html('last_backup', at=at)} "
        body += f"<span class='ns-quiet'>{visit.html('backups_kept', n=number)}</span></p>"
    problem = backup_problem(desk.db, desk.home, now)
    since = newest or min(person.created_at for person in people.list_all(desk.db))
    if problem is None and now - since > _LATE_SECONDS:
        problem = visit.say("late_backup")
    if problem:
        body += f"<p role='alert' class='ns-problem'>{escape(problem)}</p>"
    links = " · ".join(f"<a href='/operate/export/{fmt}' download>{fmt}</a>" for fmt in FORMATS)
    return card(visit.html("data"), f"{body}<p>{visit.html('downloads')} {links}</p>")
