"""Versions: where each came from, what the gate found, how people ranked it, and changing what serves.

Publishing and rolling back take two steps. The first arms the change and says what it will do; the second
names what it was armed with, and is refused if something else serves by then.
"""

from html import escape
from typing import Any

import gradio as gr

from chatbot.pages.operate_desk import Desk, Visit, attempt, panel, table, verdict
from chatbot.pages.operate_words import known, moment
from data import snapshots, versions
from data.database import Database
from data.errors import Refused
from data.records import BASE_VERSION, Version


def build_versions(desk: Desk, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the list of versions and the two-step change inside `tab`."""
    listing = panel()
    heading = panel()
    with gr.Row(elem_classes="ns-buttons") as choices:
        rollback = gr.Button(variant="secondary", scale=0, min_width=250)
        which = gr.Dropdown(choices=[], interactive=True, scale=0, min_width=240)
        publish = gr.Button(variant="secondary", scale=0, min_width=250)
    with gr.Column(visible=False, elem_classes="ns-armed") as armed:
        question = panel()
        order = gr.Textbox(visible=False)
        with gr.Row(elem_classes="ns-buttons"):
            confirm = gr.Button(variant="primary", scale=0, min_width=200)
            keep = gr.Button(variant="secondary", scale=0, min_width=200)
    changing = [heading, rollback, which, publish, choices, armed]
    arming = [choices, armed, question, order, confirm, keep]

    def prepare(request: gr.Request) -> list[Any]:
        """All but the list: how often people ranked each version is read where the tab is shown."""
        visit = desk.open(request)
        return [gr.update(label=visit.say("versions")), *_choices(desk.db, visit)]

    def show(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        return [listing_html(desk, visit), *_choices(desk.db, visit)]

    def arm_rollback(request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        return _arm(visit, "rollback", versions.serving(desk.db).current, versions.rollback_target(desk.db))

    def arm_publish(target: str | None, request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        return _arm(visit, "publish", versions.serving(desk.db).current, target)

    def carry_out(armed_with: str, request: gr.Request) -> list[Any]:
        visit = desk.open(request)
        attempt(lambda: _change(desk.db, visit, armed_with))
        return [listing_html(desk, visit), *_choices(desk.db, visit)]

    page.load(prepare, None, [tab, *changing], show_progress="hidden")
    tab.select(show, None, [listing, *changing], show_progress="hidden")
    rollback.click(arm_rollback, None, arming, show_progress="hidden")
    publish.click(arm_publish, which, arming, show_progress="hidden")
    confirm.click(carry_out, order, [listing, *changing], show_progress="hidden")
    keep.click(show, None, [listing, *changing], show_progress="hidden")


# ---------------------------------------------------------------------------------------------------------
# The list


def _choices(db: Database, visit: Visit) -> list[Any]:
    """What can be rolled back or published, disarmed."""
    current = versions.serving(db).current
    names = [
        BASE_VERSION,
        *(version.name for version in versions.list_all(db) if version.status != "refused"),
    ]
    others = [name for name in dict.fromkeys(reversed(names)) if name != current]
    back = versions.rollback_target(db)
    label = visit.say("rollback_to", name=back) if back else visit.say("rollback_none")
    return [
        f"<h2 class='ns-heading'>{visit.html('change')}</h2>",
        gr.update(value=label, interactive=back is not None),
        gr.update(label=visit.say("publish_which"), choices=others, value=others[0] if others else None),
        gr.update(value=visit.say("publish"), interactive=bool(others)),
        gr.update(visible=True),
        gr.update(visible=False),
    ]


def listing_html(desk: Desk, visit: Visit) -> str:
    """A row per version, newest first, with its report folded away."""
    chosen, answering = versions.serving(desk.db).current, desk.answering().version
    made = sorted(versions.list_all(desk.db), key=lambda version: version.name, reverse=True)
    made = [version for version in made if version.name != BASE_VERSION]
    if not made:
        return f"<p class='ns-empty'>{visit.html('no_versions')}</p>"
    record = desk.version_record(desk.db)
    rows = [
        [
            _name(visit, version.name, chosen, answering),
            escape(version.parent),
            _status(visit, version),
            str(version.rankings),
            f"<span class='ns-key'>{moment(version.created_at, visit.zone)}</span>",
            record_html(visit, version.name, record),
        ]
        for version in made
    ]
    head = [visit.html(key) for key in ("version", "parent_of", "status", "rankings", "made", "people")]
    note = visit.html("compared_note", n=f"{snapshots.RECORDED:,}")
    return table(head, rows) + f"<p class='ns-quiet'>{note}</p>"


def _name(visit: Visit, name: str, chosen: str, answering: str) -> str:
    """A version's name, and whether it answers or is only to."""
    strong = f"<strong class='ns-key'>{escape(name)}</strong>"
    if name not in (chosen, answering):
        return strong
    word = visit.html("serves" if name == answering else "to_serve")
    return f"{strong} <span class='ns-state ns-published'>{word}</span>"


def _status(visit: Visit, version: Version) -> str:
    """Passed or refused, with the gate's sentences behind it."""
    word = escape(known(f"status_{version.status}", visit.language, version.status))
    kind = {"accepted": "published", "refused": "refused"}.get(version.status, "running")
    chip = f"<span class='ns-state ns-{kind}'>{word}</span>"
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in verdict(version))
    if not sentences:
        return chip
    summary = f"<summary>{chip} {visit.html('report')}</summary>"
    return f"<details>{summary}<ul class='ns-why'>{sentences}</ul></details>"


def record_html(visit: Visit, name: str, record: dict[tuple[str, str], tuple[int, int, int]]) -> str:
    """How often people ranked `name` against each other version, from its own side."""
    lines = []
    for (newer, older), (wins, ties, losses) in sorted(record.items(), reverse=True):
        if name == newer:
            lines.append(visit.html("beat", other=older, wins=wins, losses=losses, ties=ties))
        elif name == older:
            lines.append(visit.html("beat", other=newer, wins=losses, losses=wins, ties=ties))
    return "<br>".join(lines) or f"<span class='ns-quiet'>{visit.html('never_compared')}</span>"


# ---------------------------------------------------------------------------------------------------------
# Changing what serves


def _arm(visit: Visit, action: str, current: str, target: str | None) -> list[Any]:
    """Show the question for `action`; the order it is armed with travels in a hidden field."""
    if not target:
        gr.Warning(visit.html("choose_first" if action == "publish" else "rollback_none"))
        return [gr.update(), gr.update(visible=False), gr.update(), gr.update(), gr.update(), gr.update()]
    question = visit.html(f"arm_{action}", current=current, target=target)
    return [
        gr.update(visible=False),
        gr.update(visible=True),
        f"<p role='alert'>{question}</p>",
        f"{action} {current} {target}",
        gr.update(value=visit.say(f"confirm_{action}")),
        gr.update(value=visit.say("keep", current=current)),
    ]


def _change(db: Database, visit: Visit, armed_with: str) -> str:
    """Do what was armed, unless something else serves by now. The order is the browser's word: check it."""
    action, current, target = (*armed_with.split(" "), "", "", "")[:3]
    with db.write():
        now = versions.serving(db).current
        offered = {("publish", target), ("rollback", versions.rollback_target(db))}
        if now != current or (action, target) not in offered:
            raise Refused(visit.say("moved_on", current=now))
        if action == "rollback":
            serving = versions.rollback(db, actor=visit.person.name)
        else:
            by_hand = visit.say("published_by", name=visit.person.name)
            serving = versions.publish(db, target, actor=visit.person.name, reason=by_hand)
    return visit.say("chosen", name=serving.current)
