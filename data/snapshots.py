"""What the database holds, as comparisons: every ranking that teaches, with its prompt and replies as text,
and everybody's last edit of a reply, which beats what it replaced.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations, islice

from data.comparisons import HALF_LIFE_SECONDS, RankedTurn
from data.database import Database, Row
from data.errors import NotFound
from data.messages import DEMONSTRATED, WRITTEN, end_of, prompt_of
from data.rankings import TEACHING
from data.text import to_json
from data.versions import number

RECORDED = 10_000
"""How many of the newest rankings `version_record` reads, so that its cost stays bounded."""
BATCH = 100
_LONGEST = 32_000
"""Characters of a prompt that a night keeps: more than the 1,024 tokens that it reads (trainer/reward.py,
trainer/examples.py), as long as these have 31 each."""
Read = Callable[[Database, str], tuple[dict[str, str], ...]]
"""The prompt of a turn by its id."""

_RANKED = (
    f"SELECT r.id, r.turn_id, r.person_id, r.source, r.kind, r.created_at, t.conversation_id FROM {TEACHING}"
)
_EDITS = f"messages m JOIN {DEMONSTRATED} AND m.id = e.replaces_id AND {WRITTEN}"
_EDITED = (
    "SELECT e.id, e.parent_id AS turn_id, e.conversation_id, e.author_id, e.created_at, e.content, p.kind,"
    f" m.content AS original, m.version, m.finish_reason FROM {_EDITS}"
)
_TIMES = (
    f"SELECT r.id, r.created_at, r.person_id, r.source = 'imported' AS is_imported FROM {TEACHING}"
    f" UNION ALL SELECT e.id, e.created_at, e.author_id, 0 FROM {_EDITS}"
)
_IN_ROUNDS = (
    "SELECT id FROM (SELECT *, row_number() OVER (PARTITION BY is_imported, person_id"
    " ORDER BY created_at DESC, id DESC) * (1 + max(0, ? - created_at) / ?) AS round"
    f" FROM ({_TIMES})) ORDER BY is_imported, round, created_at DESC, id DESC"
)


def taught_turns(db: Database, most: int | None = None) -> list[RankedTurn]:
    """What teaches at this moment, oldest first, each at weight 1: all of it, or `most`.

    These are chosen in rounds, everybody's newest first, then everybody's second newest: whoever said little
    keeps all of it, however much others said since. What was said a half-life ago has its turn twice as late,
    so that those who left do not push out those who are here. Imports take only the places that people here
    leave to them. Texts are read of what is chosen, no more.
    """
    with db.read():
        ids = [row["id"] for row in db.query(_IN_ROUNDS, (time.time(), HALF_LIFE_SECONDS))]
        found = list(islice(turns_by_id(db, ids), most))
    return sorted(found, key=lambda turn: (turn.created_at, turn.ranking_id))


def last_taught(db: Database) -> float | None:
    """When the newest of all that teaches was said; None where nothing does."""
    row = db.one(f"SELECT max(created_at) AS newest FROM ({_TIMES})")
    return row["newest"] if row else None


def count_taught(db: Database, until: float | None = None, most: int = -1) -> int:
    """How many rankings and edits teach, of those said by `until`. Beyond `most` it stops counting."""
    found = f"SELECT 1 FROM ({_TIMES}) WHERE created_at <= ? LIMIT ?"
    row = db.one(f"SELECT count(*) AS n FROM ({found})", (math.inf if until is None else until, most))
    return int(row["n"]) if row else 0


def turns_by_id(db: Database, ids: Sequence[str]) -> Iterator[RankedTurn]:
    """Those of the rankings and edits that teach, in the order of `ids`, each at weight 1. Of the prompt of a
    very long conversation they have the end, which is all that a night reads."""
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        wanted = (to_json(batch),)
        found = {
            turn.ranking_id: turn
            for rows, turn_of in (
                (db.query(f"{_RANKED} AND r.id IN (SELECT value FROM json_each(?))", wanted), _ranked_turn),
                (db.query(f"{_EDITED} AND e.id IN (SELECT value FROM json_each(?))", wanted), _edited_turn),
            )
            for turn in _turns(db, rows, turn_of, end_of_prompt)
        }
        yield from (found[id] for id in batch if id in found)


def stream_turns(db: Database) -> Iterator[RankedTurn]:
    """All that teaches, with whole prompts, each at weight 1: the rankings, then the edits. Few are in memory
    at a time."""
    rankings = in_batches(db, f"{_RANKED} AND r.id > ? ORDER BY r.id LIMIT ?")
    edits = in_batches(db, f"{_EDITED} AND e.id > ? ORDER BY e.id LIMIT ?")
    yield from _turns(db, rankings, _ranked_turn, prompt_of)
    yield from _turns(db, edits, _edited_turn, prompt_of)


def in_batches(db: Database, sql: str) -> Iterator[Row]:
    """All rows of `sql`, BATCH at a time: its parameters are the last id seen and how many to read."""
    last = ""
    while rows := db.query(sql, (last, BATCH)):
        yield from rows
        last = rows[-1]["id"]


def end_of_prompt(db: Database, turn_id: str) -> tuple[dict[str, str], ...]:
    """Of a turn's prompt as much as a night reads."""
    return end_of(db, turn_id, _LONGEST)[0]


def opening_of(db: Database, conversation_id: str) -> str:
    """What was asked first of all in a conversation; empty where nothing was.

    A path of its tree may begin otherwise: whoever rewords the first message makes a second root.
    """
    row = db.one(
        "SELECT content FROM messages WHERE conversation_id = ? AND role = 'user' ORDER BY id LIMIT 1",
        (conversation_id,),
    )
    return str(row["content"]) if row else ""


def _turns(
    db: Database, rows: Iterable[Row], turn_of: Callable[[Database, Row, Read], RankedTurn], read: Read
) -> Iterator[RankedTurn]:
    """The rows with their texts; without those of which too few were written to say anything, or that were
    deleted since the row was read."""
    for row in rows:
        with suppress(NotFound):
            turn = turn_of(db, row, read)
            if turn.pairs() or (turn.replies and turn.kind == "all_bad"):
                yield turn


def _ranked_turn(db: Database, row: Row, read: Read) -> RankedTurn:
    """One ranking with those of its replies that were written."""
    placed = db.query(
        "SELECT m.content, m.version, m.finish_reason, place, shown FROM placements"
        f" JOIN messages m ON m.id = message_id WHERE ranking_id = ? AND {WRITTEN} ORDER BY m.id",
        (row["id"],),
    )
    return RankedTurn(
        ranking_id=row["id"],
        turn_id=row["turn_id"],
        conversation_id=row["conversation_id"],
        person_id=row["person_id"],
        source=row["source"],
        kind=row["kind"],
        created_at=row["created_at"],
        prompt=read(db, row["turn_id"]),
        replies=tuple(entry["content"] for entry in placed),
        places=tuple(entry["place"] for entry in placed),
        versions=tuple(entry["version"] for entry in placed),
        shown=tuple(entry["shown"] for entry in placed),
        cut=tuple(entry["finish_reason"] != "stop" for entry in placed),
        weight=1.0,
        opening=opening_of(db, row["conversation_id"]),
    )


def _edited_turn(db: Database, row: Row, read: Read) -> RankedTurn:
    """An edit beats the reply it replaced."""
    return RankedTurn(
        ranking_id=row["id"],
        turn_id=row["turn_id"],
        conversation_id=row["conversation_id"],
        person_id=row["author_id"],
        source="human" if row["kind"] == "human" else "simulated",
        kind="best",
        created_at=row["created_at"],
        prompt=read(db, row["turn_id"]),
        replies=(row["content"], row["original"]),
        places=(1, 2),
        versions=(None, row["version"]),
        shown=(0, 0),
        cut=(False, row["finish_reason"] != "stop"),
        weight=1.0,
        opening=opening_of(db, row["conversation_id"]),
    )


def version_record(db: Database) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(newer, older) -> (wins, ties, losses) of the newer version: one count for each ranking in which both
    appeared, by which had the better mean place. Only rankings by people here, the newest RECORDED."""
    rows = db.query(
        "SELECT r.id, m.version, avg(place) AS place FROM"
        f" (SELECT r.id FROM {TEACHING} AND r.source = 'human' ORDER BY r.created_at DESC LIMIT ?) r"
        f" JOIN placements ON ranking_id = r.id JOIN messages m ON m.id = message_id AND {WRITTEN}"
        " AND m.version IS NOT NULL GROUP BY r.id, m.version",
        (RECORDED,),
    )
    met: dict[str, dict[str, float]] = {}
    for row in rows:
        met.setdefault(row["id"], {})[row["version"]] = row["place"]
    record: dict[tuple[str, str], tuple[int, int, int]] = {}
    for places in met.values():
        for older, newer in combinations(sorted(places, key=number), 2):
            wins, ties, losses = record.get((newer, older), (0, 0, 0))
            won, tied = places[newer] < places[older], places[newer] == places[older]
            record[newer, older] = (wins + won, ties + tied, losses + (not won and not tied))
    return record
