"""The sidebar: a person's conversations, their settings, and the version they are talking to."""

import json
import re
import unicodedata
from typing import Any

import gradio as gr

from chatbot.pages.board import View, script
from chatbot.pages.payload import Payload
from chatbot.turns import Turns
from data import conversations, lessons, versions
from data.database import Database
from data.records import BASE_VERSION, Person

SEARCH_LENGTH = 200
MOST_CHATS = 200
"""Of more, the latest used are listed, and the page says that there are others."""


class Sidebar(gr.HTML):
    """The sidebar as a component."""

    def __init__(self, value: View | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template="<div></div>",
            js_on_load=script("sidebar.js"),
            apply_default_css=False,
            elem_id="sidebar",
            **arguments,
        )


def sidebar_view(db: Database, turns: Turns, person: Person, conversation_id: str, search: str = "") -> View:
    """What the sidebar shows while this conversation is open.

    Empty is a new one: of that only the page knows whether nights may learn from it, and says so with `send`.
    """
    found = conversations.list_for(db, person.id, search, MOST_CHATS + 1)
    may_train = conversations.get(db, conversation_id, person.id).may_train if conversation_id else None
    return {
        "conversation_id": conversation_id,
        "chats": [{"id": chat.id, "title": chat.title} for chat in found[:MOST_CHATS]],
        "has_more": len(found) > MOST_CHATS,
        "search": search,
        "may_train": may_train,
        "version": version_view(db, person, turns.engine.version),
        "name": person.name,
        "links": links_for(person),
        "file": None,
    }


def version_view(db: Database, person: Person, name: str) -> View:
    """The version that answers, how much it learned from, how much of that was this person's, and the word.

    A fine-tuned one learned from demonstrations, and from no ranking.
    """
    version = versions.get(db, name)
    if version.name == BASE_VERSION:
        return {"version": name, "name": name, "rankings": None, "yours": None, "word": "trained_on_none"}
    demonstrations = version.report.get("demonstrations")
    return {
        "version": version.name,
        "name": version.name,
        "rankings": version.rankings,
        "demonstrations": demonstrations,
        "yours": lessons.count_by(db, version.run_id, person.id),
        "word": "trained_on" if demonstrations is None else "imitates",
    }


def links_for(person: Person) -> list[tuple[str, str]]:
    """The other pages this person may open."""
    return [*([("operate", "/operate/")] if person.role == "operator" else []), ("account", "/account/")]


def exported(db: Database, conversation_id: str, key: str) -> dict[str, Any]:
    """A conversation as a file for the browser to keep; `key` tells one download from the next."""
    export = conversations.export(db, conversation_id)
    content = json.dumps(export, ensure_ascii=False, indent=2)
    return {"key": key, "name": f"{_file_name(export['title'], conversation_id)}.json", "text": content}


def _file_name(title: str, id: str) -> str:
    """Of letters and digits that every file system takes; an id begins with the time, and ends at random."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall("[a-z0-9]+", plain))[:40].strip("-")
    return "-".join(filter(None, ("night-school", slug, id[-8:])))


def target(db: Database, person: Person, sent: Payload) -> str:
    """The conversation that a menu was opened on. Refused or NotFound where it is not this person's."""
    return conversations.get(db, sent.text("target"), person.id).id
