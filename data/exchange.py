"""Import and export: rankings and demonstrations as rows that other trainers read (formats.py says which).

Export streams what may teach: opted-out chats and disabled people are left out. Import makes each row a
conversation of a person who stands for the file, with a ranking of source `imported`; the same row twice is
one. A row that cannot be used is named with its line and its reason, and the others go in.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from data import conversations, demonstrations, messages, people, rankings
from data.comparisons import RankedTurn
from data.database import Database
from data.errors import Refused
from data.files import lines_of
from data.formats import FORMATS, MOST_REPLIES, Judged, Messages, judged, judged_labels, label_of, rows_of
from data.records import Person, Placement
from data.snapshots import stream_turns
from data.text import from_json, to_json

BATCH = 100
"""Rows imported in one transaction."""
_MOST_ALIKE = MOST_REPLIES // 2
"""Of KTO's replies to one prompt, the good ones and the bad ones each."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """How many rows went in, and a sentence for each that did not."""

    added: int
    skipped: list[str]
    known: int
    """Of those that did not, how many were here already."""


def export_rows(db: Database, fmt: str) -> Iterator[dict[str, Any]]:
    """What may teach, as rows of `fmt`, one at a time."""
    _check_format(fmt)
    return _demonstrations(db) if fmt == "sft" else _comparisons(db, fmt)


def _comparisons(db: Database, fmt: str) -> Iterator[dict[str, Any]]:
    for turn in stream_turns(db):
        for row in rows_of(turn, fmt):
            yield row | _why(db, turn) if fmt == "tiers" else row


def _why(db: Database, turn: RankedTurn) -> dict[str, Any]:
    """What the person said of their ranking; nothing of an edit."""
    reasons, comment = rankings.said(db, turn.ranking_id)
    return {"reasons": list(reasons), "comment": comment}


def _demonstrations(db: Database) -> Iterator[dict[str, Any]]:
    for found in demonstrations.stream(db):
        yield {"messages": [*found.messages, {"role": "assistant", "content": found.reply}]}


def write_rows(rows: Iterable[dict[str, Any]], file: IO[str]) -> int:
    """Writes rows as JSONL as they come; returns how many."""
    number = 0
    for line in as_lines(rows):
        file.write(line)
        number += 1
    return number


def as_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Rows as lines of JSONL, as they come."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> Iterator[Any]:
    """A JSONL file's rows in order, gzip'd or not; a blank line is None, a line that is no JSON is ""."""
    for line in lines_of(path):
        try:
            yield from_json(line) if line.strip() else None
        except ValueError:
            yield ""


def import_rows(db: Database, rows: Iterable[Any], fmt: str, person_name: str = "imported") -> ImportResult:
    """Stores each usable row; `rows` are parsed JSON values, None where a line was blank.

    Refused where the name is that of somebody who chats here: their list of chats would fill with a file's.
    """
    _check_format(fmt)
    _who_stands_for_it(db, person_name)
    skipped: list[str] = []
    found = _labelled(rows, skipped) if fmt == "kto" else _judged(rows, fmt, skipped)
    added = known = 0
    while batch := list(islice(found, BATCH)):
        with db.write():
            person = _who_stands_for_it(db, person_name) or people.add(db, person_name, kind="simulated")
            for line, entry in batch:
                if _store(db, person, entry):
                    added += 1
                else:
                    known += 1
                    skipped.append(f"Line {line} is left out: it is here already.")
    return ImportResult(added, skipped, known)


def _check_format(fmt: str) -> None:
    if fmt not in FORMATS:
        raise Refused(f"There is no format {fmt!r} - use one of {', '.join(FORMATS)}.")


def _who_stands_for_it(db: Database, name: str) -> Person | None:
    person = people.by_name(db, name)
    if person and person.kind == "human":
        raise Refused(
            f"{person.name!r} is somebody who chats here, and the rows would stand among their own chats - "
            "name somebody else with --person, or leave it out."
        )
    return person


def _left_out(line: int, error: Refused) -> str:
    return f"Line {line} is left out: {str(error).rstrip('.')}."


def _numbered(rows: Iterable[Any], skipped: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield line, row
        elif row is not None:
            skipped.append(f"Line {line} is left out: it is no JSON object.")


def _judged(rows: Iterable[Any], fmt: str, skipped: list[str]) -> Iterator[tuple[int, Judged]]:
    for line, row in _numbered(rows, skipped):
        try:
            yield line, judged(row, fmt)
        except Refused as error:
            skipped.append(_left_out(line, error))


def _labelled(rows: Iterable[Any], skipped: list[str]) -> Iterator[tuple[int, Judged]]:
    """KTO's rows by prompt: only together do they compare anything."""
    prompts: dict[str, tuple[int, Messages, dict[str, tuple[bool, int]]]] = {}
    for line, row in _numbered(rows, skipped):
        try:
            prompt, reply, label = label_of(row)
        except Refused as error:
            skipped.append(_left_out(line, error))
            continue
        labels = prompts.setdefault(json.dumps(prompt), (line, prompt, {}))[2]
        if reply not in labels and [one for one, _ in labels.values()].count(label) == _MOST_ALIKE:
            so_far = f"{_MOST_ALIKE} replies to its prompt are labelled {to_json(label)} already"
            skipped.append(f"Line {line} is left out: {so_far}.")
            continue
        said, first = labels.setdefault(reply, (label, line))
        if said != label:
            skipped.append(f"Line {line} is left out: line {first} labels the same reply {to_json(said)}.")
    for line, prompt, labels in prompts.values():
        try:
            yield line, judged_labels(prompt, [(reply, label) for reply, (label, _) in labels.items()])
        except Refused as error:
            skipped.append(_left_out(line, error))


def _store(db: Database, person: Person, entry: Judged) -> bool:
    """Writes a judged prompt as a conversation with its ranking; False if it is there, whatever was said."""
    judgement = (entry.prompt, entry.replies, entry.places, entry.kind)
    key = "import-" + hashlib.sha256(json.dumps(judgement).encode()).hexdigest()
    if messages.by_request_key(db, person.id, key):
        return False
    chat = conversations.create(db, person.id)
    parent = conversations.add_history(db, chat, entry.prompt[:-1])
    turn = conversations.add_user_message(db, chat.id, parent, entry.prompt[-1]["content"], person.id, key)
    author = None if entry.places else person.id
    cut = entry.cut or (False,) * len(entry.replies)
    replies = [
        conversations.add_written_reply(db, turn.id, reply, author, is_cut)
        for reply, is_cut in zip(entry.replies, cut, strict=True)
    ]
    if entry.places:
        placed = zip(replies, entry.places, strict=True)
        rankings.save(
            db,
            turn_id=turn.id,
            person_id=person.id,
            source="imported",
            kind=entry.kind,
            placements=[Placement(reply.id, place, at) for at, (reply, place) in enumerate(placed)],
            reasons=entry.reasons,
            comment=entry.comment,
        )
    return True
