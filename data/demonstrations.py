"""Demonstrations: replies that people wrote or edited themselves, and imported ones, to learn to imitate.

An edit counts twice in Night School: as a ranking, since it beats what it replaced (comparisons.py), and as a
demonstration. A reply that somebody edited once more is out: its better wording is in. What teaches
is decided as for rankings: chats that may train, people who are not disabled.

A file of demonstrations is JSONL and begins each line with the message's id under the name that snapshots of
rankings use, `ranking_id`: a deletion (forgetting.py) finds both kinds by it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from data.comparisons import prompt_of
from data.database import Database
from data.records import Source


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What somebody was asked, and the reply that a person gave."""

    messages: tuple[dict[str, str], ...]
    """From the root down to the user's message."""
    reply: str
    conversation_id: str
    source: Source
    """`imported` from a file of others; `simulated` by a person who exists only to rank."""
    message_id: str
    person_id: str


def collect(db: Database) -> list[Demonstration]:
    """All that there is to imitate, oldest first; the same reply to the same messages counts once."""
    with db.read():
        rows = db.query(
            "SELECT m.id, m.parent_id, m.content, m.conversation_id, m.author_id,"
            " CASE WHEN t.request_key LIKE 'import-%' AND m.replaces_id IS NULL THEN 'imported'"
            " WHEN p.kind = 'human' THEN 'human' ELSE 'simulated' END AS source"
            " FROM messages m JOIN messages t ON t.id = m.parent_id"
            " JOIN conversations c ON c.id = m.conversation_id AND c.may_train"
            " JOIN people p ON p.id = m.author_id AND NOT p.is_disabled"
            " WHERE m.role = 'assistant' AND trim(m.content) != '' AND NOT EXISTS"
            " (SELECT 1 FROM messages e JOIN people q ON q.id = e.author_id AND NOT q.is_disabled"
            " WHERE e.replaces_id = m.id) ORDER BY m.id"
        )
        found: dict[tuple[str, str], Demonstration] = {}
        for row in rows:
            messages = prompt_of(db, row["parent_id"])
            demonstration = Demonstration(
                messages, row["content"], row["conversation_id"], row["source"], row["id"], row["author_id"]
            )
            found.setdefault((json.dumps(messages), row["content"]), demonstration)
    return list(found.values())


def write_down(db: Database, run_id: str, demonstrations: list[Demonstration], path: Path) -> str:
    """Writes what a run learns from into a file, and into its row, so that a deletion can reach the version.

    Returns the file's sha256. The newest ranking that the run has seen stays unset: it saw none.
    """
    lines = [
        {"ranking_id": entry.message_id, "messages": list(entry.messages), "reply": entry.reply}
        for entry in demonstrations
    ]
    rows = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    content = "".join(rows).encode()
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    with db.write() as conn:
        conn.execute("DELETE FROM run_rankings WHERE run_id = ?", (run_id,))
        conn.execute("UPDATE runs SET snapshot_hash = ? WHERE id = ?", (sha256, run_id))
        conn.executemany(
            "INSERT INTO run_rankings (run_id, ranking_id, person_id)"
            " VALUES (?, ?, (SELECT id FROM people WHERE id = ?))",
            [(run_id, entry.message_id, entry.person_id) for entry in demonstrations],
        )
    return sha256
