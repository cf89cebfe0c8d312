"""Forgetting a person: their rows go, and what runs wrote; the versions that learned from them are named.

What goes: the person, their sessions, API keys, conversations (with everybody's rankings of them), rankings,
and what they wrote in other people's chats. Runs that may have read any of it, as rankings or as prompts to
practise on, keep only their log: snapshots, samples and reward models go, so that no later run starts warm
from them; the reports of their versions lose the samples and the person's figures. A reference that learned
from the person stops being one.

What stays: the audit log and the reason for what serves, without the name; the ids of rankings that runs
learned from, which name nobody; and the versions themselves. One that serves teaches its descendants until
somebody publishes another. Backups are listed, since only the operator can say whether they may go.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import audit, lessons, runs, versions
from data.backups import backup_files, other_copies
from data.database import Connection, Database
from data.errors import Busy, Problem
from data.home import Home
from data.messages import untie
from data.records import Person
from data.runfolder import LOG
from data.text import to_json

NOBODY = "a deleted person"
FORGOTTEN, SCRUBBED = "forget", "scrub"
"""What the audit calls a deletion, and the rewriting of the file that follows it."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a deletion removed and what it reaches."""

    conversations: int
    rankings: int
    versions: list[str]
    """They learned from this person, or descend from one that did."""
    serving: str | None
    """The one of them that serves still; None where another serves."""
    untainted: str
    """What serves, or its nearest ancestor, that is none of them and was not refused."""
    reference: str | None
    """The one of them that anchored the learning until now."""
    snapshots: list[str]
    """Files that runs learned from, deleted now."""
    runs: list[str]
    """Their folders were emptied but for the log."""
    backups: list[str]
    """They still hold the rows, until they are rotated out or deleted: unfinished copies among them."""
    is_wiped: bool
    """False where old pages stay in the log: another process reads them, or the disk is full."""


def forget(
    db: Database,
    home: Home,
    person: Person,
    actor: str = audit.COMMAND_LINE,
    check: Callable[[], None] = lambda: None,
) -> Forgotten:
    """Deletes all that this person said, and tells whom it taught. Busy while a refresh runs on it.

    The folders are emptied before the rows are gone for good: where that fails, it can be done again. `check`
    looks at the database without the person; nothing is deleted where it raises.
    """
    with db.write() as conn:
        runs.interrupt_expired(db)
        latest = runs.latest(db)
        if latest is not None and latest.state == "running":
            raise Busy(
                "A refresh is running and has read these rankings - wait, or have an operator cancel it."
            )
        gone = _what_goes(db, person)
        reached = versions.learned_from(db, gone)
        touched = _touched_runs(db, person, gone)
        folders = _touched_folders(db, home, touched)
        versions.redact(db, touched, person.id)
        before = versions.serving(db)
        reference = before.reference if before.reference in reached else None
        if reference:
            versions.set_reference(db, None, actor=actor)
        conversations, ranked = _delete_rows(db, conn, person, gone)
        check()
        detail = {"rankings": ranked, "versions": reached, "runs": len(folders)}
        audit.record(db, actor, FORGOTTEN, detail)
        snapshots = [str(path) for folder in folders for path in sorted(folder.rglob("*.jsonl"))]
        for folder in folders:
            _empty(folder)
    return Forgotten(
        conversations=conversations,
        rankings=ranked,
        versions=reached,
        serving=before.current if before.current in reached else None,
        untainted=versions.untouched(db, before.current, reached),
        reference=reference,
        snapshots=snapshots,
        runs=[folder.name for folder in folders],
        backups=[str(path) for path in (*backup_files(home), *other_copies(home))],
        is_wiped=_wipe(db),
    )


def _wipe(db: Database) -> bool:
    """Whether the log is empty too. Raises no Problem: the rows are gone, and the caller must tell which."""
    try:
        return db.empty_log()
    except Problem:
        return False


def scrub(db: Database) -> bool:
    """Rewrites the database's file where somebody was forgotten since the last time; False where nobody was.

    SQLite overwrites what is deleted (`secure_delete`), but no copies that it left in a page when it moved a
    row to another one. Others' writes wait meanwhile; Problem where they do not let it, or the disk has no
    room. What somebody still reads is overwritten as soon as they have done.
    """
    forgotten, scrubbed = audit.newest(db, FORGOTTEN), audit.newest(db, SCRUBBED)
    if forgotten is None or (scrubbed and scrubbed.detail.get("until") == forgotten.at):
        return False
    db.vacuum()
    audit.record(db, audit.TRAINER, SCRUBBED, {"until": forgotten.at})
    return True


def _delete_rows(db: Database, conn: Connection, person: Person, gone: list[str]) -> tuple[int, int]:
    """Deletes the person from every table; how many conversations and rankings went."""
    chats = db.query("SELECT id FROM conversations WHERE person_id = ?", (person.id,))
    ids = to_json(gone)
    ranked = conn.execute("DELETE FROM rankings WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    _remove_words(conn, person)
    untie(conn, [chat["id"] for chat in chats])
    conn.execute("DELETE FROM people WHERE id = ?", (person.id,))
    _unname(db, conn, person)
    return len(chats), ranked.rowcount


def _what_goes(db: Database, person: Person) -> list[str]:
    """What a run may have learned from: rankings by them, in their chats or of their words; edits; turns."""
    rows = db.query(
        "SELECT r.id FROM rankings r JOIN messages t ON t.id = r.turn_id"
        " JOIN conversations c ON c.id = t.conversation_id"
        " WHERE r.person_id = :id OR c.person_id = :id OR r.id IN"
        " (SELECT ranking_id FROM placements JOIN messages m ON m.id = message_id WHERE m.author_id = :id)"
        " UNION SELECT m.id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
        " WHERE m.replaces_id IS NOT NULL AND (m.author_id = :id OR c.person_id = :id)"
        " UNION SELECT m.id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
        " WHERE m.role = 'user' AND c.person_id = :id",
        {"id": person.id},
    )
    return sorted({row["id"] for row in rows} | set(lessons.of_person(db, person.id)))


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
    """Takes the name and the id out of the audit, and the name out of the reason why what serves does."""
    reason = _reworded(versions.serving(db).reason, person)
    conn.execute("UPDATE serving SET reason = ? WHERE id = 1", (reason,))
    for row in db.query("SELECT id, person, detail FROM audit"):
        actor = NOBODY if row["person"] in (person.name, person.id) else row["person"]
        detail = to_json(_without(json.loads(row["detail"]), person))
        if (actor, detail) != (row["person"], row["detail"]):
            conn.execute("UPDATE audit SET person = ?, detail = ? WHERE id = ?", (actor, detail, row["id"]))


def _without(value: Any, person: Person) -> Any:
    if isinstance(value, dict):
        return {
            name: _reworded(entry, person) if name == "reason" else _without(entry, person)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [_without(entry, person) for entry in value]
    return NOBODY if value in (person.name, person.id) else value


def _reworded(reason: str, person: Person) -> str:
    """A sentence without their name, where it is a word of its own: part of another word is not theirs.

    Only letters of ASCII make it part of one, since Chinese has no gaps between words.
    """
    return re.sub(rf"(?<!\w){re.escape(person.name)}(?!\w)", NOBODY, reason, flags=re.ASCII)


def _touched_runs(db: Database, person: Person, gone: list[str]) -> list[str]:
    """Every run, except those that ended before this person came and learned from nothing of what goes.

    Which turns a run was judged on stands in no table, nor what one before migration m008 practised on, and
    a chat may have been deleted since: only its dates tell that a run cannot have read them.
    """
    rows = db.query("SELECT id FROM runs WHERE finished_at IS NULL OR finished_at >= ?", (person.created_at,))
    return sorted({row["id"] for row in rows} | lessons.runs_taught_by(db, gone))


def _touched_folders(db: Database, home: Home, touched: list[str]) -> list[Path]:
    """The folders of these runs, and those of no known run, of which nobody can tell what they hold."""
    spared = {row["id"] for row in db.query("SELECT id FROM runs")} - set(touched)
    folders = (path for path in sorted(home.runs.iterdir()) if path.is_dir() and path.name not in spared)
    return [folder for folder in folders if any(path.name != LOG for path in folder.iterdir())]


def _empty(folder: Path) -> None:
    """Nothing but the log stays."""
    try:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOG:
                path.unlink()
    except FileNotFoundError:  # a prune takes from the same folder; what is left still goes
        if folder.exists():
            _empty(folder)
    except OSError as error:
        raise Problem(
            f"{str(folder)!r} cannot be emptied ({error.strerror}), so nobody is forgotten yet - make it "
            "writable, and forget them again."
        ) from error
