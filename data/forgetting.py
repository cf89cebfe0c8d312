"""Forgetting a person: their rows go, the file is rewritten, the versions that learned from them are named.

What goes: the person, their sessions, conversations (with everybody's rankings of them), rankings, and what
they wrote in other people's chats. What stays: the audit without their name, and the ids of the rankings a
run learned from, which name nobody. Snapshots of runs that hold their words are deleted; backups are listed,
since only the operator can say whether they may go.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from data import people, runs, versions
from data.backups import backup_files
from data.database import Connection, Database, to_json
from data.errors import Busy
from data.home import Home
from data.records import Person

NOBODY = "a deleted person"
ACTOR = "command line"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a deletion removed and what it reaches."""

    conversations: int
    rankings: int
    versions: list[str]
    """They learned from these rankings, or descend from one that did."""
    snapshots: list[str]
    """Files of runs that held the words, deleted now."""
    backups: list[str]
    """They still hold the rows, until they are rotated out or deleted."""
    is_wiped: bool
    """False where a reader kept old pages in the log; they go when it has ended."""


def forget(db: Database, home: Home, person: Person) -> Forgotten:
    """Deletes all that this person said, and tells whom it taught. Busy while a refresh runs on it."""
    runs.interrupt_expired(db)
    latest = runs.latest(db)
    if latest is not None and latest.state == "running":
        raise Busy("A refresh is running and has read these rankings - wait for it, or cancel it.")
    with db.write() as conn:
        gone = _what_goes(db, person)
        reached = versions.learned_from(db, gone)
        chats = conn.execute(
            "SELECT count(*) FROM conversations WHERE person_id = ?", (person.id,)
        ).fetchone()
        ids = to_json(gone)
        ranked = conn.execute("DELETE FROM rankings WHERE id IN (SELECT value FROM json_each(?))", (ids,))
        _remove_words(conn, person)
        conn.execute("DELETE FROM people WHERE id = ?", (person.id,))
        _unname(db, conn, person)
        people.record(db, ACTOR, "forget", {"rankings": ranked.rowcount, "versions": reached})
    return Forgotten(
        conversations=chats[0],
        rankings=ranked.rowcount,
        versions=reached,
        snapshots=_delete_snapshots(home, set(gone)),
        backups=[str(path) for path in backup_files(home)],
        is_wiped=db.vacuum(),
    )


def _what_goes(db: Database, person: Person) -> list[str]:
    """The ids a run may have learned from: rankings by the person, in their chats of their words; edits."""
    rows = db.query(
        "SELECT r.id FROM rankings r JOIN messages t ON t.id = r.turn_id"
        " JOIN conversations c ON c.id = t.conversation_id"
        " WHERE r.person_id = :id OR c.person_id = :id OR r.id IN"
        " (SELECT ranking_id FROM placements JOIN messages m ON m.id = message_id WHERE m.author_id = :id)"
        " UNION SELECT m.id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
        " WHERE m.replaces_id IS NOT NULL AND (m.author_id = :id OR c.person_id = :id)"
        " UNION SELECT ranking_id FROM run_rankings WHERE person_id = :id",
        {"id": person.id},
    )
    return [row["id"] for row in rows]


def _remove_words(conn: Connection, person: Person) -> None:
    """What they wrote in other people's chats: gone, or emptied where others went on from it."""
    theirs = (
        "author_id = ? AND conversation_id NOT IN (SELECT id FROM conversations WHERE person_id = author_id)"
    )
    conn.execute(
        f"DELETE FROM messages WHERE {theirs}"
        " AND NOT EXISTS (SELECT 1 FROM messages child WHERE child.parent_id = messages.id)",
        (person.id,),
    )
    conn.execute(
        f"UPDATE messages SET content = '(deleted)', replaces_id = NULL WHERE {theirs}",
        (person.id,),
    )


def _unname(db: Database, conn: Connection, person: Person) -> None:
    """Takes the name and the id out of the audit."""
    for row in db.query("SELECT id, person, detail FROM audit"):
        actor = NOBODY if row["person"] in (person.name, person.id) else row["person"]
        detail = to_json(_without(json.loads(row["detail"]), person))
        if (actor, detail) != (row["person"], row["detail"]):
            conn.execute("UPDATE audit SET person = ?, detail = ? WHERE id = ?", (actor, detail, row["id"]))


def _without(value: Any, person: Person) -> Any:
    if isinstance(value, dict):
        return {name: _without(entry, person) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without(entry, person) for entry in value]
    return NOBODY if value in (person.name, person.id) else value


def _delete_snapshots(home: Home, gone: set[str]) -> list[str]:
    """Deletes the snapshot files under the home's runs that hold any of these rankings."""
    deleted = []
    for path in sorted(home.runs.rglob("*.jsonl")):
        with path.open("rb") as file:
            found = any(
                ids[1].decode() in gone
                for line in file
                if (ids := re.match(rb'\{"ranking_id":"([^"]+)"', line))
            )
        if found:
            path.unlink()
            deleted.append(str(path))
    return deleted
