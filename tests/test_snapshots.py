"""snapshots.py: what teaches, as the database holds it, and which version beat which."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from data import comparisons, conversations, messages, people
from data.comparisons import HALF_LIFE_SECONDS
from data.database import Database
from data.records import FinishReason, Message, Sampling
from data.snapshots import count_taught, last_taught, stream_turns, taught_turns, turns_by_id, version_record
from data.text import to_json
from tests.stories import a_long_chat, a_turn, frozen, rank, somebody


def test_a_snapshot_holds_the_texts_versions_and_cuts(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada, ["short", "long"], version=["base", "v000001"], question="Why?")
    ranking = rank(db, ada, replies[::-1], [1, 2])
    (turn,) = taught_turns(db)
    assert (turn.ranking_id, turn.conversation_id) == (ranking.id, replies[0].conversation_id)
    assert turn.prompt == ({"role": "user", "content": "Why?"},)
    assert (turn.replies, turn.places, turn.versions) == (("short", "long"), (2, 1), ("base", "v000001"))
    assert (turn.shown, turn.cut, turn.weight) == ((1, 0), (False, False), 1.0)


def test_a_reply_that_did_not_end_by_itself_is_cut(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada, ["one"])
    turn = str(replies[0].parent_id)
    (long,) = conversations.start_replies(db, turn, "base", Sampling(), [9])
    replies.append(conversations.finish_reply(db, long.id, "without end", 128, "length"))
    rank(db, ada, replies, [1, 2])
    assert taught_turns(db)[0].cut == (False, True)


def with_an_empty_reply(db: Database, texts: list[str], reason: FinishReason) -> list[Message]:
    """The replies to a turn; v000001 wrote the last one, of which nothing is there."""
    replies = a_turn(db, somebody(db), texts)
    (empty,) = conversations.start_replies(db, str(replies[0].parent_id), "v000001", Sampling(), [9])
    return [*replies, conversations.finish_reply(db, empty.id, "", 0, reason)]


@pytest.mark.parametrize("reason", ["interrupted", "cancelled", "failed"])
def test_a_reply_that_was_cut_off_before_its_first_word_teaches_nothing(
    db: Database, reason: FinishReason
) -> None:
    ada, replies = somebody(db), with_an_empty_reply(db, ["one", "two"], reason)
    rank(db, ada, replies, [1, 2, 2], kind="best")
    rank(db, ada, with_an_empty_reply(db, ["one"], reason), [1, 2])
    rank(db, ada, with_an_empty_reply(db, ["one", "two"], reason), [2, 2, 1], kind="best")
    conversations.add_edit(db, replies[-1].id, "three", ada.id)
    (turn,) = taught_turns(db)
    assert (turn.replies, turn.pairs()) == (("one", "two"), [(0, 1, 1.0)])
    assert version_record(db) == {}


def test_a_model_that_had_nothing_to_say_is_judged_for_it(db: Database) -> None:
    rank(db, somebody(db), with_an_empty_reply(db, ["one"], "stop"), [1, 2])
    assert taught_turns(db)[0].pairs() == [(0, 1, 1.0)]
    assert version_record(db) == {("v000001", "base"): (0, 0, 1)}


def test_only_what_teaches_is_in_the_snapshot(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    kept = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    rank(db, ada, a_turn(db, ada, may_train=False), [1, 2, 3])
    rank(db, eve, a_turn(db, ada), [1, 2, 3])
    people.set_disabled(db, eve.id, True)
    changed = a_turn(db, ada)
    rank(db, ada, changed, [1, 2, 3])
    last = rank(db, ada, changed, [1, 1, 1], kind="all_bad")
    assert [turn.ranking_id for turn in taught_turns(db)] == [kept.id, last.id]


def test_an_edit_beats_what_it_replaced(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    edit = conversations.add_edit(db, replies[2].id, "four", ada.id)
    (turn,) = taught_turns(db)
    assert (turn.ranking_id, turn.kind, turn.source) == (edit.id, "best", "human")
    assert (turn.replies, turn.pairs()) == (("four", "three"), [(0, 1, 1.0)])
    conversations.set_may_train(db, edit.conversation_id, False)
    assert taught_turns(db) == []


@pytest.mark.parametrize("has_system", [True, False])
def test_what_follows_each_wording_of_a_first_message_is_of_one_part(db: Database, has_system: bool) -> None:
    ada = somebody(db)
    wordings = [f"Write a short poem about cats{'!' * number}" for number in range(20)]
    same = a_turn(db, ada, question=wordings[0])
    rank(db, ada, same, [1, 2, 3])
    chat = conversations.create(db, ada.id)
    system = conversations.add_system_message(db, chat.id, "Be brief.").id if has_system else None
    for number, wording in enumerate(wordings):
        said = conversations.add_user_message(db, chat.id, system, wording, ada.id)
        replies = [conversations.add_written_reply(db, said.id, reply, None) for reply in ("one", "two")]
        if number % 2:
            conversations.add_edit(db, replies[0].id, "three", ada.id)
        else:
            rank(db, ada, replies, [1, 2])
    turns = taught_turns(db)
    assert len(turns) == 21 and {turn.prompt[-1]["content"] for turn in turns} == set(wordings)
    assert {turn.opening for turn in turns} == {wordings[0]}
    assert len({turn.group for turn in turns}) == len({turn.part for turn in turns}) == 1


def test_what_is_deleted_between_two_rows_is_left_out(db: Database) -> None:
    ada = somebody(db)
    chats = [a_turn(db, ada) for _ in range(6)]
    for replies in chats[:3]:
        rank(db, ada, replies, [1, 2, 3])
    for replies in chats[3:]:
        conversations.add_edit(db, replies[0].id, "better", ada.id)
    turns = stream_turns(db)
    found = [next(turns)]
    conversations.delete(db, chats[1][0].conversation_id)  # its row has been read with the first one's
    found += [next(turns), next(turns)]
    conversations.delete(db, chats[4][0].conversation_id)
    found += turns
    assert [turn.turn_id for turn in found] == [chats[at][0].parent_id for at in (0, 2, 3, 5)]


def test_the_newest_are_chosen_and_imports_take_what_people_here_leave(db: Database) -> None:
    ada = somebody(db)
    ranked = [rank(db, ada, a_turn(db, ada), [1, 2, 3]).id for _ in range(3)]
    imported = [rank(db, ada, a_turn(db, ada), [1, 2, 3], source="imported").id for _ in range(2)]
    edit = conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id).id
    everything = [*ranked, *imported, edit]
    newest = [{edit}, {edit, ranked[2]}, {edit, *ranked[1:]}, {edit, *ranked}, {edit, *ranked, imported[1]}]
    for most, chosen in enumerate([set(), *newest, set(everything), set(everything)]):
        turns = taught_turns(db, most)
        assert [turn.ranking_id for turn in turns] == [id for id in everything if id in chosen]


def test_whoever_said_little_keeps_all_of_it_beside_one_who_fills_a_night(db: Database) -> None:
    said = [rank(db, somebody(db, f"p{i % 5}"), a_turn(db, somebody(db)), [1, 2, 3]).id for i in range(20)]
    replies = a_turn(db, (mallory := somebody(db, "mallory")), list("abcdefghi"))
    rank(db, mallory, replies, range(1, 10))
    with db.write():
        edits = [conversations.add_edit(db, replies[i % 9].id, f"Buy {i}!", mallory.id).id for i in range(50)]
    standing = edits[-9:]  # of each reply the last
    turns = comparisons.weigh(taught_turns(db, 24))
    assert [turn.ranking_id for turn in turns] == [*said, *standing[-4:]]
    hers = sum(turn.weight for turn in turns if turn.person_id == mallory.id)
    assert hers <= 2 / 6 * sum(turn.weight for turn in turns)
    few = taught_turns(db, 6)
    assert [turn.ranking_id for turn in few] == [*said[-5:], standing[-1]], "everybody's newest"


def test_people_who_left_do_not_push_out_those_who_are_here(db: Database) -> None:
    """Who left more than a year ago has a first turn after the seventh of the others."""
    here, left = ["ada", "bob"], [f"p{i}" for i in range(10)]
    for name in [*left, *here * 10]:
        rank(db, somebody(db, name), a_turn(db, somebody(db)), [1, 2, 3])
    gone = to_json([somebody(db, name).id for name in left])
    with db.write() as conn:
        conn.execute(
            "UPDATE rankings SET created_at = created_at - ?"
            " WHERE person_id IN (SELECT value FROM json_each(?))",
            (6.5 * HALF_LIFE_SECONDS, gone),
        )
    said = Counter(turn.person_id for turn in taught_turns(db, 14))
    assert [said[somebody(db, name).id] for name in here] == [7, 7]
    assert len(taught_turns(db)) == 30


def test_of_a_long_conversation_a_night_keeps_the_end_and_an_export_all(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.snapshots._LONGEST", 5_000)
    for replies in a_long_chat(db, ada := somebody(db), turns=30, length=500, texts=("one", "two")):
        rank(db, ada, replies, [1, 2])
    conversations.add_edit(db, replies[0].id, "better", ada.id)
    taken, whole = taught_turns(db), list(stream_turns(db))
    assert [len(turn.prompt) for turn in whole] == [*range(1, 61, 2), 59]
    for kept, all_of_it in zip(taken, whole, strict=True):
        assert kept.prompt == all_of_it.prompt[-15:], "eight turns"
        assert (kept.group, kept.part, kept.replies) == (all_of_it.group, all_of_it.part, all_of_it.replies)
    again = list(turns_by_id(db, [turn.ranking_id for turn in whole]))
    assert again == taken, "so that a warm start knows them"


def test_only_what_is_chosen_is_read_with_its_texts(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, read = somebody(db), list[str]()
    ids = [rank(db, ada, a_turn(db, ada), [1, 2, 3]).turn_id for _ in range(7)]
    monkeypatch.setattr("data.snapshots.BATCH", 2)
    monkeypatch.setattr(
        "data.snapshots.end_of", lambda db, id, most: read.append(id) or messages.end_of(db, id, most)
    )
    assert [turn.turn_id for turn in taught_turns(db, 3)] == ids[-3:]
    assert set(read) == set(ids[-4:])


def test_what_is_asked_for_comes_in_that_order_without_what_teaches_no_more(db: Database) -> None:
    ada = somebody(db)
    first, gone, changed, last = (rank(db, ada, a_turn(db, ada), [1, 2, 3]) for _ in range(4))
    edit = conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id)
    conversations.delete(db, conversation_of(db, gone.turn_id))
    rank(db, ada, messages.replies(db, changed.turn_id), [3, 2, 1])
    asked = [last.id, gone.id, edit.id, changed.id, "nothing", first.id]
    assert [turn.ranking_id for turn in turns_by_id(db, asked)] == [last.id, edit.id, first.id]
    assert list(turns_by_id(db, [])) == []


def test_the_time_of_what_was_said_last_is_known_without_texts(db: Database) -> None:
    assert last_taught(db) is None
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3], source="imported")
    for _ in range(2):
        rank(db, ada, a_turn(db, ada), [1, 2, 3])
        assert last_taught(db) == taught_turns(db)[-1].created_at
    conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id)
    newest = taught_turns(db)[-1].created_at
    assert last_taught(db) == newest
    assert (count_taught(db), count_taught(db, newest - 1e-6), count_taught(db, most=2)) == (4, 3, 2)


def conversation_of(db: Database, turn_id: str) -> str:
    return messages.get(db, turn_id).conversation_id


def test_a_snapshot_is_its_file(db: Database, tmp_path: Path) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada, ["één\u2028", "zwei\n", "三"]), [1, 2, 2])
    conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id)
    turns, path = taught_turns(db), tmp_path / "snapshot.jsonl"
    comparisons.write_snapshot(turns, path)
    snapshot = comparisons.read_snapshot(path)
    assert snapshot.turns == tuple(turns)
    assert snapshot.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == frozen(db).sha256


def test_a_later_ranking_changes_the_hash_and_an_empty_snapshot_has_one(db: Database) -> None:
    empty = frozen(db)
    assert empty.turns == ()
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert frozen(db).sha256 != empty.sha256


def test_versions_are_compared_where_they_met(db: Database) -> None:
    ada = somebody(db)
    both = ["base", "v000001", "base", "v000001"]
    for order in ([2, 1, 3, 1], [1, 1, 1, 1], [1, 2, 3, 4], [4, 1, 3, 2]):
        rank(db, ada, a_turn(db, ada, list("abcd"), version=both), order)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    rank(db, ada, a_turn(db, ada, list("abcd"), version=both), [1, 2, 3, 4], source="simulated")
    assert version_record(db) == {("v000001", "base"): (2, 1, 1)}


def test_versions_are_compared_in_the_newest_rankings(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.snapshots.RECORDED", 2)
    ada, both = somebody(db), ["base", "v000001"]
    for order in ([1, 2], [1, 2], [2, 1], [1, 1]):
        rank(db, ada, a_turn(db, ada, list("ab"), version=both), order)
    assert version_record(db) == {("v000001", "base"): (1, 1, 0)}


def test_of_many_versions_the_newer_is_named_first(db: Database) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada, list("abc"), version=["v000010", "v000009", "base"]), [1, 2, 3])
    assert version_record(db) == {
        ("v000010", "v000009"): (1, 0, 0),
        ("v000010", "base"): (1, 0, 0),
        ("v000009", "base"): (1, 0, 0),
    }
