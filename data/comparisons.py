"""Rankings become comparisons: who beat whom, how much each ranking weighs, whom it teaches.

A night learns from one immutable snapshot: every ranking that teaches, with its prompt and replies as text,
and everybody's last edit of a reply, which beats what it replaced. Its file is JSONL, whose sha256 stands in
the run's row. A ranking's weight follows from its source, its age and its person's reliability; no person of
n has more than max(5 %, 2/n) of the night, where n is 4 or more.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from data.database import Database, Row
from data.errors import NotFound, Refused
from data.messages import DEMONSTRATED, WRITTEN, prompt_of
from data.rankings import TEACHING
from data.records import Prompt as Prompt
from data.records import RankingKind, Source
from data.versions import number

HALF_LIFE_SECONDS = 60 * 86400.0
"""A ranking this much older than the newest one weighs half."""
SOURCE_WEIGHTS: dict[Source, float] = {"human": 1.0, "simulated": 1.0, "imported": 0.5}
SHORTEST_OPENING = 24
"""From this many bytes on a first message identifies its dialogue; many begin with "hi" or the like."""
RECORDED = 10_000
"""How many of the newest rankings `version_record` reads, so that its cost stays bounded."""
LARGEST_SHARE = 0.05
"""No person has more of a night than this share, or than 2/n of it where that is larger (n people)."""
FEWEST_TO_CAP = 4
BATCH = 100


@dataclass(frozen=True, slots=True)
class RankedTurn:
    """One ranking with all that learning needs: texts, places, who made the replies, what it weighs."""

    ranking_id: str
    """Of an edit: the id of the edited message."""
    turn_id: str
    conversation_id: str
    person_id: str
    source: Source
    kind: RankingKind
    created_at: float
    prompt: tuple[dict[str, str], ...]
    replies: tuple[str, ...]
    places: tuple[int, ...]
    versions: tuple[str | None, ...]
    """Which version wrote each reply; None for a person or an import."""
    shown: tuple[int, ...]
    """Where each reply stood on the page; all 0 for an edit, which was not shown."""
    cut: tuple[bool, ...]
    """Whether each reply ended otherwise than by its own end of turn."""
    weight: float
    reliability: float = 1.0
    """Of the person, from 0 to 1, where nights before have measured it (trainer/reliability.py)."""

    def pairs(self) -> list[tuple[int, int, float]]:
        """(i, j, q): q is 1 where reply i is better, 0.5 where they tie; i is never the worse one."""
        if self.kind in ("all_bad", "skip"):
            return []
        found = []
        for i, j in combinations(range(len(self.places)), 2):
            better, worse = (i, j) if self.places[i] <= self.places[j] else (j, i)
            is_tie = self.places[i] == self.places[j]
            if not (self.kind == "best" and is_tie):
                found.append((better, worse, 0.5 if is_tie else 1.0))
        return found

    @property
    def group(self) -> str:
        """Equal for rankings that are not independent: those of dialogues that begin with the same words.

        The conversation's id would not do: each imported row and each simulated turn has one of its own,
        whatever it shares with others. It serves only where the opening is too short to tell dialogues apart.
        """
        opening = next((said["content"] for said in self.prompt if said["role"] == "user"), "").encode()
        is_telling = len(opening) >= SHORTEST_OPENING
        return hashlib.sha256(opening).hexdigest() if is_telling else self.conversation_id

    @property
    def part(self) -> Literal["A", "B"]:
        """A teaches the rewards, B the judge; 60/40 by group, for ever the same."""
        digest = hashlib.sha256(self.group.encode()).digest()
        return "A" if int.from_bytes(digest[:8], "big") % 100 < 60 else "B"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one night learns from; `sha256` is that of its file."""

    turns: tuple[RankedTurn, ...]
    sha256: str


def take_snapshot(db: Database) -> Snapshot:
    """All that teaches at this moment, oldest first, weighed."""
    with db.read():
        found = list(stream_turns(db))
    turns = weigh(sorted(found, key=lambda turn: (turn.created_at, turn.ranking_id)))
    return Snapshot(tuple(turns), hashlib.sha256(_lines(turns)).hexdigest())


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Writes the snapshot as JSONL, a ranking a line; the file's sha256 is the snapshot's."""
    path.write_bytes(_lines(snapshot.turns))


def read_snapshot(path: Path) -> Snapshot:
    """The snapshot of a file; Refused with the line that is none."""
    content = path.read_bytes()
    turns = []
    for line, row in enumerate(content.splitlines(), start=1):
        try:
            values: dict[str, Any] = json.loads(row)
            turns.append(RankedTurn(**{name: _tuple(value) for name, value in values.items()}))
        except (ValueError, TypeError, AttributeError) as error:
            raise Refused(
                f"Line {line} of {str(path)!r} is no ranking ({error}) - take a new snapshot."
            ) from error
    return Snapshot(tuple(turns), hashlib.sha256(content).hexdigest())


def _lines(turns: Iterable[RankedTurn]) -> bytes:
    rows = (json.dumps(asdict(turn), ensure_ascii=False, separators=(",", ":")) + "\n" for turn in turns)
    return "".join(rows).encode()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def weigh(turns: Sequence[RankedTurn]) -> list[RankedTurn]:
    """The turns with their weights: source x age x reliability x the cap on a person.

    Ages count from the newest, or from now where that is from a time when the clock was ahead.
    """
    if not turns:
        return []
    newest = min(time.time(), max(turn.created_at for turn in turns))
    weights = [
        SOURCE_WEIGHTS[turn.source]
        * 0.5 ** (max(0.0, newest - turn.created_at) / HALF_LIFE_SECONDS)
        * turn.reliability
        for turn in turns
    ]
    totals: dict[str, float] = {}
    for turn, weight in zip(turns, weights, strict=True):
        totals[turn.person_id] = totals.get(turn.person_id, 0.0) + weight
    limit = largest_total(list(totals.values()))
    return [
        replace(turn, weight=weight * min(1.0, limit / totals[turn.person_id]))
        for turn, weight in zip(turns, weights, strict=True)
    ]


def largest_total(totals: Sequence[float]) -> float:
    """The cap c on a person's total: c = share x sum(min(total, c)), so nobody exceeds the share."""
    people = len(totals)
    if people < FEWEST_TO_CAP:
        return max(totals)
    share = max(LARGEST_SHARE, 2 / people)
    falling = sorted(totals, reverse=True)
    for capped in range(people):
        rest = sum(falling[capped:])
        limit = share * rest / (1 - share * capped)
        if falling[capped] <= limit:
            return max(limit, falling[capped])
    raise AssertionError("a share of at least 2/n always leaves room")


def stream_turns(db: Database) -> Iterator[RankedTurn]:
    """All that teaches, each at weight 1: the rankings, then the edits. Few are in memory at a time.

    Without what is deleted before its turn comes.
    """
    for row in in_batches(
        db,
        "SELECT r.id, r.turn_id, r.person_id, r.source, r.kind, r.created_at, t.conversation_id"
        f" FROM {TEACHING} AND r.id > ? ORDER BY r.id LIMIT ?",
    ):
        with suppress(NotFound):
            yield from _ranked_turn(db, row)
    for row in in_batches(
        db,
        "SELECT e.id, e.parent_id, e.conversation_id, e.author_id, e.created_at, e.content, p.kind,"
        " m.content AS original, m.version, m.finish_reason"
        f" FROM messages m JOIN {DEMONSTRATED} AND m.id = e.replaces_id AND {WRITTEN}"
        " AND e.id > ? ORDER BY e.id LIMIT ?",
    ):
        with suppress(NotFound):
            yield _edited_turn(db, row)


def in_batches(db: Database, sql: str) -> Iterator[Row]:
    """All rows of `sql`, BATCH at a time: its parameters are the last id seen and how many to read."""
    last = ""
    while rows := db.query(sql, (last, BATCH)):
        yield from rows
        last = rows[-1]["id"]


def _ranked_turn(db: Database, row: Row) -> Iterator[RankedTurn]:
    """One ranking with its texts, unless too few of them were written to say anything."""
    placed = db.query(
        "SELECT m.content, m.version, m.finish_reason, place, shown FROM placements"
        f" JOIN messages m ON m.id = message_id WHERE ranking_id = ? AND {WRITTEN} ORDER BY m.id",
        (row["id"],),
    )
    turn = RankedTurn(
        ranking_id=row["id"],
        turn_id=row["turn_id"],
        conversation_id=row["conversation_id"],
        person_id=row["person_id"],
        source=row["source"],
        kind=row["kind"],
        created_at=row["created_at"],
        prompt=prompt_of(db, row["turn_id"]),
        replies=tuple(entry["content"] for entry in placed),
        places=tuple(entry["place"] for entry in placed),
        versions=tuple(entry["version"] for entry in placed),
        shown=tuple(entry["shown"] for entry in placed),
        cut=tuple(entry["finish_reason"] != "stop" for entry in placed),
        weight=1.0,
    )
    if turn.pairs() or (placed and turn.kind == "all_bad"):
        yield turn


def _edited_turn(db: Database, row: Row) -> RankedTurn:
    """An edit beats the reply it replaced."""
    return RankedTurn(
        ranking_id=row["id"],
        turn_id=row["parent_id"],
        conversation_id=row["conversation_id"],
        person_id=row["author_id"],
        source="human" if row["kind"] == "human" else "simulated",
        kind="best",
        created_at=row["created_at"],
        prompt=prompt_of(db, row["parent_id"]),
        replies=(row["content"], row["original"]),
        places=(1, 2),
        versions=(None, row["version"]),
        shown=(0, 0),
        cut=(False, row["finish_reason"] != "stop"),
        weight=1.0,
    )


def agreement(turns: Iterable[RankedTurn]) -> float | None:
    """Of the pairs of replies that two people both placed, the share on which they say the same."""
    said: dict[str, list[tuple[str, dict[tuple[str, str], float]]]] = {}
    for turn in turns:
        said.setdefault(turn.turn_id, []).append((turn.person_id, _opinions(turn)))
    same = total = 0
    for opinions in said.values():
        for (one, first), (other, second) in combinations(opinions, 2):
            if one != other:
                shared = first.keys() & second.keys()
                total += len(shared)
                same += sum(first[pair] == second[pair] for pair in shared)
    return same / total if total else None


def _opinions(turn: RankedTurn) -> dict[tuple[str, str], float]:
    """How the turn judges each two texts, the texts in alphabetical order."""
    found = {}
    for better, worse, q in turn.pairs():
        pair = (turn.replies[better], turn.replies[worse])
        found[min(pair), max(pair)] = q if pair[0] < pair[1] else 1 - q
    return found


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
