"""The conversation above the board: settled turns, each with the reply that the person continued from.

Its own component rather than a gr.Chatbot: that one would show people HTML when they edit a message, and it
fetches remote images from whatever a model wrote. Here the server renders, and user text stays text.
"""

from typing import Any

import gradio as gr

from chatbot.pages import markdown
from chatbot.pages.board import View, placed, script, shown_replies, vote_view
from data import messages, rankings
from data.database import Database
from data.records import Conversation, Message, Person


class History(gr.HTML):
    """The settled turns as a component."""

    def __init__(self, value: View | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template="<div></div>",
            js_on_load=script("history.js"),
            apply_default_css=False,
            elem_id="history",
            **arguments,
        )


def empty_history() -> View:
    """A new chat."""
    return {"conversation_id": "", "title": "", "turns": [], "is_latest": True}


def latest_turn_id(db: Database, conversation_id: str) -> str:
    """The turn a conversation was left at; empty where nothing was said yet."""
    turn = messages.latest_turn(db, conversation_id)
    return turn.id if turn else ""


def history_view(db: Database, person: Person, conversation: Conversation, turn_id: str) -> View:
    """The turns on the path to `turn_id`; of that one only the message, as the board shows its replies.

    Each turn names its `branches`: the turns that stand in its place, itself among them.
    """
    branches = messages.branches(db, conversation.id)
    path = [m for m in messages.path_to(db, turn_id) if m.role != "system"] if turn_id else []
    turns: list[View] = []
    for message in path:
        if message.role == "user":
            turn: View = {"turn_id": message.id, "text": message.content, "branches": branches[message.id]}
            turns.append(turn | {"reply": None, "vote": None})
        elif turns:
            turns[-1] |= _settled(db, person, message)
    return {
        "conversation_id": conversation.id,
        "title": conversation.title,
        "turns": turns,
        "is_latest": turn_id == latest_turn_id(db, conversation.id),
    }


def _settled(db: Database, person: Person, reply: Message) -> dict[str, Any]:
    """The reply a person continued from, and what they said of its turn."""
    turn_id = str(reply.parent_id)
    ranking = rankings.current(db, turn_id, person.id)
    places = placed(ranking)
    shown = shown_replies(db, turn_id, person.id)
    is_all_shown = places.keys() <= {one.id for one in shown}
    is_edited = reply.author_id is not None
    return {
        "reply": {
            "blocks": markdown.settled_blocks(reply.content),
            "text": reply.content,
            "is_edited": is_edited,
            # Of a single reply too: others may yet come beside it, and are compared with it blind.
            "version": reply.version if reply.id in places else None,
        },
        "vote": vote_view(ranking, shown) if ranking and places and is_all_shown else None,
    }
