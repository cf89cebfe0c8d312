"""Small pieces of a day that tests of `data` begin with: somebody, a turn with replies, a ranking."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from data import conversations, people, rankings
from data.comparisons import Snapshot, read_snapshot, write_snapshot
from data.database import Database
from data.records import Message, Person, Placement, Ranking, RankingKind, Sampling, Source
from data.snapshots import taught_turns


def somebody(db: Database, name: str = "ada") -> Person:
    """The person of this name, made if need be."""
    return people.by_name(db, name) or people.add(db, name)


def a_turn(
    db: Database,
    person: Person,
    texts: Sequence[str] = ("one", "two", "three"),
    *,
    question: str = "Count for me.",
    version: str | Sequence[str] = "base",
    may_train: bool = True,
) -> list[Message]:
    """The finished replies to a question in a new conversation; their `parent_id` is the turn."""
    chat = conversations.create(db, person.id, may_train=may_train)
    turn = conversations.add_user_message(db, chat.id, None, question, person.id)
    seeds = range(len(texts))
    if isinstance(version, str):
        begun = conversations.start_replies(db, turn.id, version, Sampling(), seeds)
    else:  # as where a newer version was asked for more
        pairs = zip(version, seeds, strict=True)
        begun = [conversations.start_replies(db, turn.id, v, Sampling(), [seed])[0] for v, seed in pairs]
    return [
        conversations.finish_reply(db, reply.id, text, len(text), "stop")
        for reply, text in zip(begun, texts, strict=True)
    ]


def a_long_chat(
    db: Database, person: Person, turns: int, length: int, texts: Sequence[str] = ("one",)
) -> list[list[Message]]:
    """The replies of each turn of one conversation; a question is a number and `length` letters, and follows
    the first reply of the turn before."""
    chat, parent, found = conversations.create(db, person.id), None, []
    for number in range(turns):
        question = f"{number}" + "x" * length
        turn = conversations.add_user_message(db, chat.id, parent, question, person.id)
        found.append([conversations.add_written_reply(db, turn.id, text, None) for text in texts])
        parent = found[-1][0].id
    return found


def places(replies: Sequence[Message], order: Sequence[int]) -> list[Placement]:
    """Each reply at its place, shown in the order given."""
    return [
        Placement(reply.id, place, at) for at, (reply, place) in enumerate(zip(replies, order, strict=True))
    ]


def rank(
    db: Database,
    person: Person,
    replies: Sequence[Message],
    order: Sequence[int],
    kind: RankingKind = "full",
    source: Source = "human",
) -> Ranking:
    """Saves what this person says of the turn's replies."""
    turn_id = replies[0].parent_id
    assert turn_id is not None
    return rankings.save(
        db, turn_id=turn_id, person_id=person.id, kind=kind, placements=places(replies, order), source=source
    )


def frozen(db: Database) -> Snapshot:
    """All that teaches now, as a night would have frozen it."""
    with tempfile.TemporaryDirectory() as folder:
        write_snapshot(taught_turns(db), file := Path(folder) / "snapshot.jsonl")
        return read_snapshot(file)
