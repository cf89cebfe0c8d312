"""What every part of the operator page needs: who asks, in which language, and how to say what went wrong.

Hiding a button protects nothing: any signed-in person can call a page's functions by hand. So each function
of the operator page first calls `Desk.open`, the second lock behind the mount's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

import gradio as gr

from chatbot.config import ServeConfig
from chatbot.following import Answering
from chatbot.kept import Kept
from chatbot.pages.operate_report import part, sentences
from chatbot.pages.operate_words import known, say
from chatbot.pages.words import language_of
from data import people, rankings, schedules, snapshots
from data.database import Database
from data.errors import NotFound, Problem
from data.home import Home
from data.records import Person, Version


@dataclass(frozen=True)
class Visit:
    """One call of a page function: an operator, their language, and the zone that times are shown in."""

    person: Person
    language: str
    zone: str

    def say(self, key: str, **values: object) -> str:
        """Words for people, as plain text."""
        return say(key, self.language, **values)

    def html(self, key: str, **values: object) -> str:
        """The same, escaped to stand in HTML."""
        return escape(self.say(key, **values))

    def known(self, key: str, otherwise: str) -> str:
        """The words for `key` where we have some, else `otherwise`, as plain text."""
        return known(key, self.language, otherwise)


@dataclass(frozen=True)
class Desk:
    """The operator page's database, state directory and settings, and the figures that all who look share."""

    db: Database
    home: Home
    config: ServeConfig
    answering: Callable[[], Answering]
    """What the engine answers with; `versions.serving` is what it should."""
    count_rankings: Kept[[Database, float | None, int], int] = field(
        default_factory=lambda: Kept(rankings.count)
    )
    version_record: Kept[[Database], dict[tuple[str, str], tuple[int, int, int]]] = field(
        default_factory=lambda: Kept(snapshots.version_record)
    )

    def open(self, request: gr.Request) -> Visit:
        """The operator behind `request`. Raises gr.Error for anybody else."""
        language = language_of(dict(request.cookies), dict(request.headers))
        try:
            person = people.get(self.db, request.username or "")
        except NotFound:
            person = None
        if person is None or person.is_disabled or person.role != "operator":
            raise gr.Error(say("not_operator", language), print_exception=False)
        return Visit(person, language, schedules.get(self.db).zone)


def attempt(action: Callable[[], str]) -> None:
    """Do `action` and show the sentence it returns, or the problem it met.

    Toasts render HTML, so whatever they show is escaped.
    """
    try:
        said = action()
    except Problem as problem:
        gr.Warning(escape(str(problem)))
    else:
        gr.Info(escape(said))


def panel(value: str = "", classes: str = "ns-panel") -> gr.HTML:
    """A place for HTML of ours, without Gradio's own prose styles."""
    return gr.HTML(value, apply_default_css=False, elem_classes=classes)


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table of cells that are HTML already; on a phone each row becomes a list of named values."""
    header = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td data-label='{name}'><div>{cell}</div></td>" for name, cell in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class='ns-scroll'><table class='ns-table'><thead><tr>{header}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def figures(head: list[str], rows: list[list[str]]) -> str:
    """A small table of numbers, its cells HTML already; it stays a table on a phone. "" without rows."""
    if not rows:
        return ""
    header = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<table class='ns-figures'><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def verdict(version: Version) -> list[str]:
    """The gate's sentences on a version, as its report keeps them."""
    return sentences(part(version.report, "gate").get("reasons"))


def card(title: str, body: str) -> str:
    """A quiet panel; `title` and `body` are HTML already."""
    return f"<section class='ns-card'><h2>{title}</h2>{body}</section>"
