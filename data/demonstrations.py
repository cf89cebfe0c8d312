"""Demonstrations: replies that people wrote or edited themselves, and imported ones, to learn to imitate.

An edit counts twice in Night School: as a ranking, since it beats what it replaced (snapshots.py), and as a
demonstration. Of one person's edits of a reply only the last counts, and an edit that somebody has edited in
turn gives way to theirs. What teaches is decided as for rankings: chats that may train, people who are not
disabled.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.database import Database
from data.errors import NotFound
from data.messages import DEMONSTRATED, prompt_of
from data.records import Prompt, Source
from data.snapshots import Read, end_of_prompt, in_batches, opening_of


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What somebody was asked, and the reply that a person gave."""

    messages: tuple[dict[str, str], ...]
    """From the root down to the user's message; what `collect` gives of a very long conversation, its end."""
    reply: str
    conversation_id: str
    source: Source
    """`imported` from a file of others; `simulated` by a person who exists only to rank."""
    message_id: str
    person_id: str
    opening: str = ""
    """What was asked first of all in the conversation; left out, what `messages` begin with."""

    @property
    def group(self) -> str:
        """Equal for demonstrations that are not independent: those whose prompts are not (records.py)."""
        return Prompt(self.messages, None, self.source, self.conversation_id, self.opening).group


def collect(db: Database) -> list[Demonstration]:
    """All that there is to imitate at this moment, oldest first; of a prompt as much as a night reads."""
    with db.read():
        return list(stream(db, end_of_prompt))


def stream(db: Database, read: Read = prompt_of) -> Iterator[Demonstration]:
    """The same, few at a time, with whole prompts. The same reply to the same messages counts once."""
    seen: set[bytes] = set()
    for row in in_batches(
        db,
        "SELECT e.id, e.parent_id, e.content, e.conversation_id, e.author_id,"
        " CASE WHEN t.request_key LIKE 'import-%' AND e.replaces_id IS NULL THEN 'imported'"
        " WHEN p.kind = 'human' THEN 'human' ELSE 'simulated' END AS source"
        f" FROM messages t JOIN {DEMONSTRATED} AND t.id = e.parent_id AND NOT EXISTS"
        " (SELECT 1 FROM messages better JOIN people q ON q.id = better.author_id AND NOT q.is_disabled"
        " WHERE better.replaces_id = e.id) AND e.id > ? ORDER BY e.id LIMIT ?",
    ):
        try:
            messages, reply = read(db, row["parent_id"]), row["content"]
        except NotFound:  # deleted meanwhile
            continue
        digest = hashlib.sha256(json.dumps([messages, reply]).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield Demonstration(
                messages=messages,
                reply=reply,
                conversation_id=row["conversation_id"],
                source=row["source"],
                message_id=row["id"],
                person_id=row["author_id"],
                opening=opening_of(db, row["conversation_id"]),
            )


def write_file(path: Path, found: Sequence[Demonstration]) -> str:
    """What a run learns from, one JSON object a line; returns the file's sha256."""
    lines = [
        {"message_id": entry.message_id, "messages": list(entry.messages), "reply": entry.reply}
        for entry in found
    ]
    rows = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    content = "".join(rows).encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
