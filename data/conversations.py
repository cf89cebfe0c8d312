"""Conversations: trees of messages. Replies to the same turn are siblings, and nothing is overwritten.

A turn is a user's message; its id names it. A reply is begun unfinished (`finish_reason` is None), so that
what was asked, and of which version, survives a crash; it is finished once. Given a person, `get` checks that
the conversation is theirs; whether a reply may be ranked is checked in rankings.py.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from data import messages
from data.database import Database, Row, new_id
from data.errors import NotFound, Problem, Refused
from data.records import Conversation, FinishReason, Message, Sampling
from data.text import clean, search_terms, to_json

NEW_TITLE = "New chat"
TITLE_LENGTH = 60
"""A title made from a first message is cut here; one given by a person at 200."""
LOG_SECONDS = 0.2
"""How long a deletion waits for those who read, to empty the database's log."""


def _conversation(row: Row) -> Conversation:
    id, person, title, may_train = row["id"], row["person_id"], row["title"], bool(row["may_train"])
    return Conversation(id, person, title, may_train, row["created_at"], row["updated_at"])


def create(db: Database, person_id: str, title: str = NEW_TITLE, may_train: bool = True) -> Conversation:
    """An empty conversation."""
    now = time.time()
    conversation = Conversation(new_id(), person_id, _title(title, 200) or NEW_TITLE, may_train, now, now)
    with db.write() as conn:
        conn.execute(
            "INSERT INTO conversations (id, person_id, title, may_train, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (conversation.id, person_id, conversation.title, int(may_train), now, now),
        )
    return conversation


def get(db: Database, id: str, person_id: str | None = None) -> Conversation:
    """The conversation; NotFound if there is none, Refused if `person_id` is given and it is not theirs."""
    row = db.one("SELECT * FROM conversations WHERE id = ?", (clean(id),))
    if row is None:
        raise NotFound("This conversation does not exist or was deleted - start a new one.")
    if person_id is not None and row["person_id"] != person_id:
        raise Refused("This conversation is another person's - open one of your own.")
    return _conversation(row)


def list_for(db: Database, person_id: str, search: str = "", limit: int = 200) -> list[Conversation]:
    """A person's conversations, the latest used first; with `search`, those with all its words somewhere."""
    terms = search_terms(search)
    has_term = (
        " AND (instr(folded(c.title), ?) OR EXISTS"
        " (SELECT 1 FROM messages m WHERE m.conversation_id = c.id AND instr(folded(m.content), ?)))"
    )
    rows = db.query(
        f"SELECT c.* FROM conversations c WHERE c.person_id = ? {has_term * len(terms)}"
        " ORDER BY c.updated_at DESC, c.id DESC LIMIT ?",
        (person_id, *(term for term in terms for _ in range(2)), limit),
    )
    return [_conversation(row) for row in rows]


def rename(db: Database, id: str, title: str) -> Conversation:
    """Gives another title."""
    short = _title(title, 200)
    if not short:
        raise Refused("The title is empty - write a few words.")
    return _update(db, id, "title", short)


def set_may_train(db: Database, id: str, may_train: bool) -> Conversation:
    """Says whether the nights may learn from this conversation."""
    return _update(db, id, "may_train", int(may_train))


def delete(db: Database, id: str) -> None:
    """Removes the conversation with its messages and every ranking of them.

    The database's log is emptied of it too, unless somebody reads for longer than `LOG_SECONDS`.
    """
    with db.write() as conn:
        get(db, id)
        messages.untie(conn, [id])
        conn.execute("DELETE FROM conversations WHERE id = ?", (id,))
    with suppress(Problem):
        db.empty_log(patience=LOG_SECONDS)


def _update(db: Database, id: str, column: str, value: str | int) -> Conversation:
    with db.write() as conn:
        get(db, id)
        conn.execute(f"UPDATE conversations SET {column} = ? WHERE id = ?", (value, id))
        return get(db, id)


def _title(text: str, length: int) -> str:
    words = " ".join(clean(text).split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def add_user_message(
    db: Database,
    conversation_id: str,
    parent_id: str | None,
    content: str,
    author_id: str,
    request_key: str | None = None,
) -> Message:
    """Stores a turn under `parent_id` (None: at the root). The author's same key gives the same row again."""
    with db.write() as conn:
        if request_key is not None and (earlier := messages.by_request_key(db, author_id, request_key)):
            return earlier
        conversation = get(db, conversation_id)
        if parent_id is not None and messages.get(db, parent_id).conversation_id != conversation_id:
            raise Refused("The message to answer is in another conversation - reload the page.")
        id = messages.insert(
            conn,
            conversation_id=conversation_id,
            parent_id=parent_id,
            role="user",
            content=content,
            author_id=author_id,
            finish_reason="stop",
            request_key=request_key and clean(request_key),
        )
        if conversation.title == NEW_TITLE and (title := _title(content, TITLE_LENGTH)):
            conn.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, conversation_id))
        return messages.get(db, id)


def add_system_message(db: Database, conversation_id: str, content: str) -> Message:
    """What the model is told before the first turn, which then hangs under it."""
    with db.write() as conn:
        get(db, conversation_id)
        if db.one("SELECT 1 FROM messages WHERE conversation_id = ?", (conversation_id,)):
            raise Refused("This conversation has begun - set the system message in a new one.")
        id = messages.insert(
            conn, conversation_id=conversation_id, role="system", content=content, finish_reason="stop"
        )
        return messages.get(db, id)


def start_replies(
    db: Database, turn_id: str, version: str, sampling: Sampling, seeds: Sequence[int]
) -> list[Message]:
    """One unfinished reply of `version` per seed."""
    with db.write() as conn:
        turn, now = _turn(db, turn_id), time.time()
        ids = [
            messages.insert(
                conn,
                conversation_id=turn.conversation_id,
                parent_id=turn_id,
                role="assistant",
                version=version,
                sampling=to_json(asdict(sampling)),
                seed=seed,
                created_at=now,  # of all: by that a page knows which were asked for together
            )
            for seed in seeds
        ]
        return [messages.get(db, id) for id in ids]


def finish_reply(
    db: Database, message_id: str, content: str, tokens: int, finish_reason: FinishReason
) -> Message:
    """Stores what the model wrote, once: a reply that is finished already stays as it is.

    The exception is one that `interrupt_unfinished` gave up too early: its tokens were never counted.
    """
    with db.write() as conn:
        conn.execute(
            "UPDATE messages SET content = ?, tokens = ?, finish_reason = ?"
            " WHERE id = ? AND role = 'assistant'"
            " AND (finish_reason IS NULL OR (finish_reason = 'interrupted' AND tokens IS NULL))",
            (clean(content), tokens, finish_reason, message_id),
        )
        return messages.get(db, message_id)


def add_edit(db: Database, reply_id: str, content: str, author_id: str) -> Message:
    """A person's better wording of a reply: its finished sibling, which names the reply it replaces.

    Their latest wording once more is that same row, as when a Save is repeated whose answer was lost.
    """
    text = clean(content)
    if not text.strip():
        raise Refused("The edited reply is empty - write what the assistant should have said.")
    with db.write() as conn:
        reply = messages.get(db, reply_id)
        if reply.role != "assistant" or not reply.is_finished or reply.parent_id is None:
            raise Refused("Only a finished reply can be edited - wait until it is written.")
        others = messages.replies(db, reply.parent_id)
        theirs = [one for one in others if one.replaces_id == reply_id and one.author_id == author_id]
        same = [one for one in others if one.content.strip() == text.strip()]
        if theirs and theirs[-1] in same:
            return theirs[-1]
        if any(one.author_id is None or one.id == reply_id for one in same):
            raise Refused("This is word for word what a reply says - change it, or rank that reply best.")
        id = messages.insert(
            conn,
            conversation_id=reply.conversation_id,
            parent_id=reply.parent_id,
            role="assistant",
            content=text,
            author_id=author_id,
            replaces_id=reply_id,
            finish_reason="stop",
        )
        return messages.get(db, id)


def add_written_reply(
    db: Database, turn_id: str, content: str, author_id: str | None, is_cut: bool = False
) -> Message:
    """A finished reply that no version of ours wrote: imported, or (with an author) a demonstration. `is_cut`
    where its model was stopped before it came to an end."""
    with db.write() as conn:
        turn = _turn(db, turn_id)
        id = messages.insert(
            conn,
            conversation_id=turn.conversation_id,
            parent_id=turn_id,
            role="assistant",
            content=content,
            author_id=author_id,
            finish_reason="length" if is_cut else "stop",
        )
        return messages.get(db, id)


def add_history(db: Database, conversation: Conversation, said: Sequence[dict[str, str]]) -> str | None:
    """Stores what was said elsewhere, one branch, in an empty conversation; returns the id of its end."""
    parent: str | None = None
    for entry in said:
        text = entry["content"]
        if entry["role"] == "system":
            parent = add_system_message(db, conversation.id, text).id
        elif entry["role"] == "user":
            parent = add_user_message(db, conversation.id, parent, text, conversation.person_id).id
        elif parent is not None:
            parent = add_written_reply(db, parent, text, None).id
    return parent


def _turn(db: Database, turn_id: str) -> Message:
    turn = messages.get(db, turn_id)
    if turn.role != "user":
        raise Refused("Only a user's message can be answered - choose one.")
    return turn


def interrupt_unfinished(db: Database) -> int:
    """Marks replies that a stopped server left unfinished; returns how many there were.

    Another process, such as a chat in a terminal, may still be writing some: it can finish them even so.
    """
    with db.write() as conn:
        done = conn.execute("UPDATE messages SET finish_reason = 'interrupted' WHERE finish_reason IS NULL")
        return int(done.rowcount)


def export(db: Database, conversation_id: str) -> dict[str, Any]:
    """One conversation as plain data: itself, every message, and every ranking with its places."""
    with db.read():
        conversation = get(db, conversation_id)
        rankings = db.query(
            "SELECT r.id, r.turn_id, r.person_id, r.source, r.kind, r.revision, r.is_current, r.dwell_ms,"
            " r.reasons, r.comment, r.created_at FROM rankings r JOIN messages m ON m.id = r.turn_id"
            " WHERE m.conversation_id = ? ORDER BY r.id",
            (conversation_id,),
        )
        places = "SELECT message_id, place, shown FROM placements WHERE ranking_id = ? ORDER BY shown"
        return {
            **asdict(conversation),
            "messages": [asdict(entry) for entry in messages.list_for(db, conversation_id)],
            "rankings": [
                dict(row)
                | {
                    "reasons": json.loads(row["reasons"]),
                    "placements": [dict(place) for place in db.query(places, (row["id"],))],
                }
                for row in rankings
            ],
        }
