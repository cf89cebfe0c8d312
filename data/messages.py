"""Messages: the nodes of a conversation's tree, read singly, as a path, or as alternatives.

What may be written where is decided in conversations.py.
"""

import json
import time
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from data.database import Connection, Database, Row, new_id
from data.errors import NotFound
from data.records import Message, Sampling
from data.text import clean, to_json

_MESSAGE = (
    "m.id, m.conversation_id, m.parent_id, m.role, m.content, m.author_id, m.replaces_id, m.version,"
    " m.sampling, m.seed, m.tokens, m.finish_reason, m.created_at"
)

WRITTEN = "(m.content != '' OR m.finish_reason IN ('stop', 'length'))"
"""A reply that can be judged: it has words, or its model chose to say none and was not cut off."""

DEMONSTRATED = """messages e
    JOIN conversations c ON c.id = e.conversation_id AND c.may_train
    JOIN people p ON p.id = e.author_id AND NOT p.is_disabled
    WHERE e.role = 'assistant' AND trim(e.content) != '' AND NOT EXISTS (SELECT 1 FROM messages later
        WHERE later.replaces_id = e.replaces_id AND +later.author_id = e.author_id AND later.id > e.id)"""
"""The FROM and WHERE of every query for replies by people that the nights may learn from: of somebody's
wordings of the same reply the last one, since it corrects the others. `+` keeps SQLite from looking through
all that the author wrote."""


AROUND = 60
"""Characters that a message counts for beside its own: a chat template puts a few tokens around each."""


def message_of(row: Row) -> Message:
    """A Message from a row that has all of its columns."""
    sampling = Sampling(**json.loads(row["sampling"])) if row["sampling"] else None
    values = {name: row[name] for name in Message.__dataclass_fields__ if name != "sampling"}
    return Message(sampling=sampling, **values)


def insert(conn: Connection, *, content: str = "", **columns: Any) -> str:
    """Writes one message and moves its conversation to the top; returns its id."""
    id, now = new_id(), time.time()
    columns = {"created_at": now, **columns, "id": id, "content": clean(content)}
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    conn.execute(f"INSERT INTO messages ({names}) VALUES ({marks})", tuple(columns.values()))
    conn.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", (now, columns["conversation_id"]))
    return id


def untie(conn: Connection, conversation_ids: Sequence[str]) -> None:
    """Before these conversations are deleted: SQLite follows a chain of parents no deeper than 1,000."""
    conn.execute(
        "UPDATE messages SET parent_id = NULL WHERE conversation_id IN (SELECT value FROM json_each(?))",
        (to_json(list(conversation_ids)),),
    )


def get(db: Database, id: str) -> Message:
    """One message, else NotFound."""
    row = db.one(f"SELECT {_MESSAGE} FROM messages m WHERE m.id = ?", (clean(id),))
    if row is None:
        raise NotFound("This message does not exist or was deleted - reload the page.")
    return message_of(row)


def list_for(db: Database, conversation_id: str) -> list[Message]:
    """The whole tree, oldest first."""
    rows = db.query(
        f"SELECT {_MESSAGE} FROM messages m WHERE m.conversation_id = ? ORDER BY m.id", (conversation_id,)
    )
    return [message_of(row) for row in rows]


def path_to(db: Database, message_id: str) -> list[Message]:
    """The messages from the root down to this one."""
    rows = db.query(
        "WITH RECURSIVE path (id, parent_id, depth) AS ("
        " SELECT id, parent_id, 0 FROM messages WHERE id = ? UNION ALL"
        " SELECT u.id, u.parent_id, depth + 1 FROM messages u JOIN path ON u.id = path.parent_id)"
        f" SELECT {_MESSAGE} FROM path JOIN messages m ON m.id = path.id ORDER BY depth DESC",
        (clean(message_id),),
    )
    if not rows:
        raise NotFound("This message does not exist or was deleted - reload the page.")
    return [message_of(row) for row in rows]


def prompt_of(db: Database, message_id: str) -> tuple[dict[str, str], ...]:
    """What a model sees of the messages from the root down to this one."""
    return tuple({"role": entry.role, "content": entry.content} for entry in path_to(db, message_id))


def end_of(db: Database, message_id: str, characters: int) -> tuple[tuple[dict[str, str], ...], bool]:
    """Of `prompt_of` no more than a night can use, and whether that is all of it.

    That is the system message and the newest messages of so many `characters`, each with AROUND more; this
    one whatever it has. They begin with the user. What is older is not read, so that the turns of one long
    conversation cost no more than as many others.
    """
    rows = db.query(
        "WITH RECURSIVE path (id, parent_id, depth, size) AS ("
        " SELECT id, parent_id, 0, length(content) + :around FROM messages WHERE id = :id UNION ALL"
        " SELECT u.id, u.parent_id, depth + 1, size + length(u.content) + :around"
        " FROM messages u JOIN path ON u.id = path.parent_id WHERE size <= :most)"
        " SELECT m.role, m.content, m.conversation_id, size FROM path JOIN messages m ON m.id = path.id"
        " ORDER BY depth DESC",
        {"id": clean(message_id), "most": characters, "around": AROUND},
    )
    if not rows:
        raise NotFound("This message does not exist or was deleted - reload the page.")
    if rows[0]["size"] <= characters:
        return tuple(_said(row) for row in rows), True
    newest = list(dropwhile(lambda row: row["role"] != "user", rows[1:])) or rows[-1:]
    first = db.one(  # a system message is the first of its conversation
        "SELECT role, content FROM messages WHERE conversation_id = ? ORDER BY id LIMIT 1",
        (rows[0]["conversation_id"],),
    )
    head = [first] if first and first["role"] == "system" else []
    return tuple(_said(row) for row in (*head, *newest)), False


def _said(row: Row) -> dict[str, str]:
    return {"role": row["role"], "content": row["content"]}


def replies(db: Database, turn_id: str) -> list[Message]:
    """The alternatives of a turn, in the order they were made."""
    where = "m.parent_id = ? AND m.role = 'assistant'"
    rows = db.query(f"SELECT {_MESSAGE} FROM messages m WHERE {where} ORDER BY m.id", (clean(turn_id),))
    return [message_of(row) for row in rows]


def latest_turn(db: Database, conversation_id: str) -> Message | None:
    """What was asked last: where the conversation was left, whatever replies came to earlier turns since."""
    row = db.one(
        f"SELECT {_MESSAGE} FROM messages m WHERE m.conversation_id = ? AND m.role = 'user'"
        " ORDER BY m.id DESC LIMIT 1",
        (conversation_id,),
    )
    return message_of(row) if row else None


def latest_turn_from(db: Database, turn_id: str) -> Message:
    """The same of one branch: the newest turn that this one leads to, itself where it leads to none.

    With CROSS JOIN SQLite reads the branch; it would look through everybody's messages, the newest first.
    """
    row = db.one(
        "WITH RECURSIVE branch (id) AS (SELECT id FROM messages WHERE id = ? UNION ALL"
        " SELECT child.id FROM messages child JOIN branch ON child.parent_id = branch.id)"
        f" SELECT {_MESSAGE} FROM branch CROSS JOIN messages m ON m.id = branch.id WHERE m.role = 'user'"
        " ORDER BY m.id DESC LIMIT 1",
        (clean(turn_id),),
    )
    return message_of(row) if row else get(db, turn_id)


def branches(db: Database, conversation_id: str) -> dict[str, list[str]]:
    """Turn -> all turns that follow the same earlier turn, whichever of its replies; itself among them."""
    found: dict[str | None, list[str]] = {}
    for row in db.query(
        "SELECT m.id, answered.parent_id AS turn_id FROM messages m"
        " LEFT JOIN messages answered ON answered.id = m.parent_id"
        " WHERE m.conversation_id = ? AND m.role = 'user' ORDER BY m.id",
        (conversation_id,),
    ):
        found.setdefault(row["turn_id"], []).append(row["id"])
    return {id: together for together in found.values() for id in together}


def by_request_key(db: Database, author_id: str, request_key: str) -> Message | None:
    """The message this author has already sent with this key."""
    where = "m.author_id = ? AND m.request_key = ?"
    row = db.one(f"SELECT {_MESSAGE} FROM messages m WHERE {where}", (author_id, clean(request_key)))
    return message_of(row) if row else None
