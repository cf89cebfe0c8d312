"""Rankings: what a person said of the replies to one turn. Saving another supersedes the first and keeps it.

Places are compacted (1, 1, 3 becomes 1, 1, 2). A skip says only that the person looked. Which rankings teach
is decided in one place, `TEACHING`: current, no skip, from a chat that may train, by somebody not disabled.
Whether the turn is this person's to rank is for the caller to check: raters rank other people's turns.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from typing import Any, get_args

from data import messages
from data.database import Connection, Database, Row, new_id
from data.errors import Refused
from data.records import Placement, Ranking, RankingKind, Source
from data.text import clean, to_json

TEACHING = """rankings r
    JOIN messages t ON t.id = r.turn_id
    JOIN conversations c ON c.id = t.conversation_id AND c.may_train
    JOIN people p ON p.id = r.person_id AND NOT p.is_disabled
    WHERE r.is_current AND r.kind != 'skip'"""
"""The FROM and WHERE of every query for rankings that the nights may learn from."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def save(
    db: Database,
    *,
    turn_id: str,
    person_id: str,
    kind: RankingKind,
    placements: Sequence[Placement],
    source: Source = "human",
    dwell_ms: int | None = None,
    reasons: Sequence[str] = (),
    comment: str = "",
    idempotency_key: str | None = None,
) -> Ranking:
    """Stores the ranking and its places in one transaction; the one it supersedes is kept as a revision.

    The same idempotency key, or the same words again, gives the ranking that is there. Refused where the
    places do not fit the kind or a placed message is no finished reply of the turn.
    """
    with db.write() as conn:
        if idempotency_key is not None and (earlier := _by_key(db, person_id, idempotency_key)):
            return earlier
        places = _checked(db, turn_id, kind, placements)
        reasons, comment = tuple(clean(reason) for reason in reasons), clean(comment).strip()
        said, standing = (kind, places, reasons, comment), current(db, turn_id, person_id, source)
        if standing and said == (standing.kind, standing.placements, standing.reasons, standing.comment):
            return standing
        ranking = Ranking(
            new_id(),
            turn_id,
            person_id,
            source,
            kind,
            places,
            revision=_last_revision(db, turn_id, person_id, source) + 1,
            dwell_ms=None if dwell_ms is None else max(0, dwell_ms),
            reasons=reasons,
            comment=comment,
            created_at=time.time(),
        )
        withdraw(db, turn_id, person_id, source)
        _insert(conn, ranking, idempotency_key)
        return ranking


def _insert(conn: Connection, ranking: Ranking, idempotency_key: str | None) -> None:
    conn.execute(
        "INSERT INTO rankings (id, turn_id, person_id, source, kind, revision, is_current, dwell_ms, reasons,"
        " comment, idempotency_key, created_at) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)",
        (
            ranking.id,
            ranking.turn_id,
            ranking.person_id,
            ranking.source,
            ranking.kind,
            ranking.revision,
            ranking.dwell_ms,
            to_json(ranking.reasons),
            ranking.comment,
            idempotency_key and clean(idempotency_key),
            ranking.created_at,
        ),
    )
    conn.executemany(
        "INSERT INTO placements (ranking_id, message_id, place, shown) VALUES (?, ?, ?, ?)",
        [(ranking.id, entry.message_id, entry.place, entry.shown) for entry in ranking.placements],
    )


def _checked(
    db: Database, turn_id: str, kind: RankingKind, placements: Sequence[Placement]
) -> tuple[Placement, ...]:
    """The places compacted and in shown order, or Refused with what is wrong."""
    if messages.get(db, turn_id).role != "user":
        raise Refused("Rankings belong to a user's message - name the turn, not a reply.")
    finished = {reply.id: reply.is_finished for reply in messages.replies(db, turn_id)}
    for entry in placements:
        if entry.message_id not in finished:
            raise Refused("A ranked reply does not belong to this turn - reload the page and rank again.")
        if not finished[entry.message_id]:
            raise Refused("A reply is still being written - rank when all are finished.")
        if entry.place < 1 or entry.shown < 0:
            raise Refused(f"Place {entry.place!r} is out of range - places count from 1.")
    if len({entry.message_id for entry in placements}) < len(placements):
        raise Refused("A reply is placed twice - give each reply one place.")
    if len({entry.shown for entry in placements}) < len(placements):
        raise Refused("Two replies claim the same position on the page - reload it and rank again.")
    order = sorted({entry.place for entry in placements})
    compact = [Placement(entry.message_id, order.index(entry.place) + 1, entry.shown) for entry in placements]
    check_kind(kind, [entry.place for entry in compact])
    return tuple(sorted(compact, key=lambda entry: entry.shown))


def check_kind(kind: RankingKind, places: Sequence[int]) -> None:
    """Refused where compacted places do not fit the kind."""
    if kind not in get_args(RankingKind):
        raise Refused(f"There is no ranking of the kind {kind!r} - use {', '.join(get_args(RankingKind))}.")
    if kind == "skip" and places:
        raise Refused("A skipped turn has no places - leave them out, or rank it.")
    if kind in ("full", "best") and len(places) < 2:
        raise Refused("There is nothing to compare - place at least two replies.")
    if kind == "best" and (places.count(1) != 1 or max(places) != 2):
        raise Refused("One reply is best and the others are not - put one at place 1, the others at 2.")
    if kind == "all_bad" and (not places or max(places) != 1):
        raise Refused("Where all are bad none is better - put every reply at place 1.")


def current(db: Database, turn_id: str, person_id: str, source: Source = "human") -> Ranking | None:
    """What this person says of the turn now."""
    row = db.one(
        "SELECT * FROM rankings WHERE turn_id = ? AND person_id = ? AND source = ? AND is_current",
        (clean(turn_id), person_id, source),
    )
    return _ranking(db, row) if row else None


def said(db: Database, ranking_id: str) -> tuple[tuple[str, ...], str]:
    """The reasons and the comment of a ranking; none where there is no such ranking."""
    row = db.one("SELECT reasons, comment FROM rankings WHERE id = ?", (ranking_id,))
    return (tuple(json.loads(row["reasons"])), row["comment"]) if row else ((), "")


def revisions(db: Database, turn_id: str, person_id: str, source: Source = "human") -> list[Ranking]:
    """Everything this person has said of the turn, first to last, withdrawn ones too."""
    rows = db.query(
        "SELECT * FROM rankings WHERE turn_id = ? AND person_id = ? AND source = ? ORDER BY revision",
        (clean(turn_id), person_id, source),
    )
    return [_ranking(db, row) for row in rows]


def withdraw(db: Database, turn_id: str, person_id: str, source: Source = "human") -> bool:
    """Undo: the person says nothing of the turn any more (the row is kept); False if they did not before."""
    with db.write() as conn:
        done = conn.execute(
            "UPDATE rankings SET is_current = 0"
            " WHERE turn_id = ? AND person_id = ? AND source = ? AND is_current",
            (clean(turn_id), person_id, source),
        )
        return bool(done.rowcount)


def count(db: Database, after: float | None = None, most: int = -1, until: float | None = None) -> int:
    """How many rankings teach, said after one time and by another. Beyond `most` it stops counting."""
    found = f"SELECT 1 FROM {TEACHING} AND r.created_at > ? AND r.created_at <= ? LIMIT ?"
    between = (after or 0.0, math.inf if until is None else until)
    row = db.one(f"SELECT count(*) AS n FROM ({found})", (*between, most))
    return int(row["n"]) if row else 0


def counts(db: Database) -> dict[str, Any]:
    """Current rankings in all, those that teach, and how many of each kind and source."""
    rows = db.query(
        "SELECT kind, source, count(*) AS n FROM rankings WHERE is_current"
        " GROUP BY kind, source ORDER BY kind, source"
    )
    kinds: dict[str, int] = {}
    sources: dict[str, int] = {}
    for row in rows:
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + row["n"]
        sources[row["source"]] = sources.get(row["source"], 0) + row["n"]
    return {"rankings": sum(kinds.values()), "teaching": count(db), "kinds": kinds, "sources": sources}


def shown_order(turn_id: str, person_id: str, message_ids: Sequence[str]) -> list[str]:
    """The order in which a person sees the replies: blind, random, and the same after a reload."""

    def draw(id: str) -> bytes:
        return hashlib.sha256(f"{turn_id} {person_id} {id}".encode()).digest()

    return sorted(message_ids, key=draw)


def order_text(placements: Sequence[Placement], letters: Sequence[str] = LETTERS) -> str:
    """`B > A = C`, where the reply shown first is A."""
    tiers: dict[int, list[str]] = {}
    for entry in sorted(placements, key=lambda entry: (entry.place, entry.shown)):
        tiers.setdefault(entry.place, []).append(letters[entry.shown])
    return " > ".join(" = ".join(tier) for tier in tiers.values())


def _by_key(db: Database, person_id: str, key: str) -> Ranking | None:
    row = db.one(
        "SELECT * FROM rankings WHERE person_id = ? AND idempotency_key = ?", (person_id, clean(key))
    )
    return _ranking(db, row) if row else None


def _last_revision(db: Database, turn_id: str, person_id: str, source: Source) -> int:
    row = db.one(
        "SELECT max(revision) AS last FROM rankings WHERE turn_id = ? AND person_id = ? AND source = ?",
        (turn_id, person_id, source),
    )
    return int(row["last"] or 0) if row else 0


def _ranking(db: Database, row: Row) -> Ranking:
    places = db.query(
        "SELECT message_id, place, shown FROM placements WHERE ranking_id = ? ORDER BY shown", (row["id"],)
    )
    return Ranking(
        row["id"],
        row["turn_id"],
        row["person_id"],
        row["source"],
        row["kind"],
        tuple(Placement(place["message_id"], place["place"], place["shown"]) for place in places),
        row["revision"],
        row["dwell_ms"],
        tuple(json.loads(row["reasons"])),
        row["comment"],
        row["created_at"],
    )
