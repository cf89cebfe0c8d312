"""Rankings as comparisons: who beat whom, how much each ranking weighs, whom it teaches.

A night learns from one immutable snapshot, a JSONL file whose sha256 stands in the run's row; snapshots.py
takes it from the database, of which nothing here knows. A ranking's weight follows from its source, its age
and its person's reliability; no person of n has more than max(5 %, 2/n) of the night, where n is 4 or more.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from data.errors import Refused
from data.records import Prompt, RankingKind, Source

HALF_LIFE_SECONDS = 60 * 86400.0
"""A ranking this much older than the newest one weighs half."""
SOURCE_WEIGHTS: dict[Source, float] = {"human": 1.0, "simulated": 1.0, "imported": 0.5}
LARGEST_SHARE = 0.05
"""No person has more of a night than this share, or than 2/n of it where that is larger (n people)."""
FEWEST_TO_CAP = 4

T = TypeVar("T")


class Pair(NamedTuple):
    """Two replies of a ranking, by their index, and what was said of them."""

    better: int
    """The one put above; of a tie, the one that stands first."""
    worse: int
    q: float
    """The probability that `better` is: 1, or 0.5 where they tie."""

    @property
    def is_decided(self) -> bool:
        """Whether one was preferred: a tie says something too, but not which."""
        return self.q != 0.5


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
    """Where each reply stood on the page; all 0 for an edit, which was not. Of an import, in its row."""
    cut: tuple[bool, ...]
    """Whether each reply ended otherwise than by its own end of turn."""
    weight: float
    reliability: float = 1.0
    """Of the person, from 0 to 1, where nights before have measured it (trainer/reliability.py)."""
    opening: str = ""
    """What was asked first of all in the conversation; left out, what `prompt` begins with."""

    def pairs(self) -> list[Pair]:
        """Every two replies of which something was said; none of `all_bad` and `skip`."""
        if self.kind in ("all_bad", "skip"):
            return []
        found = []
        for i, j in combinations(range(len(self.places)), 2):
            better, worse = (i, j) if self.places[i] <= self.places[j] else (j, i)
            is_tie = self.places[i] == self.places[j]
            if not (self.kind == "best" and is_tie):
                found.append(Pair(better, worse, 0.5 if is_tie else 1.0))
        return found

    @property
    def group(self) -> str:
        """Equal for rankings that are not independent: those whose prompts are not (records.py)."""
        return Prompt(self.prompt, self.turn_id, self.source, self.conversation_id, self.opening).group

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


def write_snapshot(turns: Iterable[RankedTurn], path: Path) -> None:
    """Writes the turns as JSONL, a ranking a line; `read_snapshot` makes a snapshot of it."""
    rows = (json.dumps(asdict(turn), ensure_ascii=False, separators=(",", ":")) + "\n" for turn in turns)
    path.write_bytes("".join(rows).encode())


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


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def in_rounds(items: Iterable[T], person_of: Callable[[T], Hashable]) -> list[T]:
    """Everybody's first, then everybody's second, and so on; within a round in the order given.

    However many are taken of these, whoever has few keeps them all and who has many gets the places left: a
    share of what was taken, as `weigh` has it, is no cap where one person's crowd has pushed all others out.
    """
    rounds: list[list[T]] = []
    taken: Counter[Hashable] = Counter()
    for item in items:
        person = person_of(item)
        if taken[person] == len(rounds):
            rounds.append([])
        rounds[taken[person]].append(item)
        taken[person] += 1
    return list(chain.from_iterable(rounds))


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


def hits(pairs: Iterable[Pair], by: Sequence[float]) -> list[float]:
    """Of each decided pair, whether the better reply has more of `by`: 1, 0, or 1/2 where equal."""
    decided = [(by[pair.better], by[pair.worse]) for pair in pairs if pair.is_decided]
    return [0.5 if better == worse else float(better > worse) for better, worse in decided]


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
