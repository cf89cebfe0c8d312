"""Files of human preferences -> rankings to learn from, without the database.

    {"id", "prompt": [{"role", "content"}, ...], "replies": [...], "ranking": [best, ..., worst], "source"}

A row a line, plain or gzipped; `ranking` holds the replies' numbers, ties as a list of them. A row that is
not of this form is refused with its file and line: a figure measured on half a file is another file's.
What is only odd stands as it is: an empty reply or two equal ones were judged too, and a file's accuracy
is over all of its pairs. (`data import`, which keeps rows for ever, is stricter.)

Dialogues of a file often begin alike and part later, and such rows are not independent: intervals and splits
go by `RankedTurn.group`. A file names no conversations, so rows of one source that begin with the same user
message count as one conversation here, however short it is.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data.comparisons import RankedTurn
from data.errors import Refused
from data.files import lines_of
from data.formats import MOST_REPLIES, replies_of
from data.prompts import chat_messages
from data.text import from_json


def read_rows(
    paths: Sequence[Path], *, limit: int | None = None, needs_ranking: bool = True
) -> list[RankedTurn]:
    """The rankings of all files, one after another; at most the first `limit` of each file.

    Every ranking weighs 1. The source stands for the person too, since files rarely say who ranked. Without
    `needs_ranking` a row may leave its ranking out, and ties all of its replies.
    """
    return [_ranked(row, place, needs_ranking) for path in paths for place, row in islice(_rows(path), limit)]


def split_by_conversation(
    turns: Sequence[RankedTurn], share: float, seed: int
) -> tuple[list[RankedTurn], list[RankedTurn]]:
    """(kept, held out): about `share` of the groups are held out whole, by a hash that `seed` salts."""

    def is_held_out(turn: RankedTurn) -> bool:
        digest = hashlib.sha256(f"{seed}:{turn.group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    return [t for t in turns if not is_held_out(t)], [t for t in turns if is_held_out(t)]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row that is not blank, with the place to name in a refusal."""
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            yield (place := f"Line {number} of {str(path)!r}"), _object(line, place)


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = from_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise Refused(f"{place} is no JSON object - write one row a line.")
    return row


def _ranked(row: dict[str, Any], place: str, needs_ranking: bool) -> RankedTurn:
    prompt, replies = _prompt(row.get("prompt"), place), _replies(row.get("replies"), place)
    count = len(replies)
    ranking = row.get("ranking", None if needs_ranking else [list(range(count))])
    began = next((entry["content"] for entry in prompt if entry["role"] == "user"), "")
    name, source = str(row.get("id", place)), str(row.get("source", "file"))
    return RankedTurn(
        ranking_id=name,
        turn_id=name,
        conversation_id=hashlib.sha256(json.dumps([source, began]).encode()).hexdigest(),
        person_id=source,
        source="imported",
        kind="full",
        created_at=0.0,
        prompt=prompt,
        replies=replies,
        places=_places(ranking, count, place),
        versions=(None,) * count,
        shown=(0,) * count,
        cut=(False,) * count,
        weight=1.0,
    )


def _prompt(value: object, place: str) -> tuple[dict[str, str], ...]:
    """Chat messages, or the text of a single one."""
    try:
        return chat_messages([{"role": "user", "content": value}] if isinstance(value, str) else value)
    except Refused as error:
        raise Refused(
            f"{place} has no prompt ({error}) - give chat messages with role and content."
        ) from error


def _replies(value: object, place: str) -> tuple[str, ...]:
    try:
        return replies_of(value)
    except Refused as error:
        raise Refused(
            f"{place} has no replies to compare ({error}) - give 1 to {MOST_REPLIES} texts."
        ) from error


def _places(ranking: object, count: int, place: str) -> tuple[int, ...]:
    """Where each reply was put, from 1; tied ones share a place."""
    tiers = (
        [tier if isinstance(tier, list) else [tier] for tier in ranking] if isinstance(ranking, list) else []
    )
    named = [at for tier in tiers for at in tier]
    if not all(type(at) is int for at in named) or sorted(named) != list(range(count)):
        raise Refused(
            f"{place} has the ranking {ranking!r} - name its {count} replies once each, from 0, best first."
        )
    places = {at: number for number, tier in enumerate(tiers, start=1) for at in tier}
    return tuple(places[at] for at in range(count))
