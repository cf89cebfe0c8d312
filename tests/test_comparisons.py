"""comparisons.py: pairs, parts, weights, the snapshot and what people agree on."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data import comparisons, conversations, people
from data.comparisons import RankedTurn, agreement, largest_total, take_snapshot, version_record, weigh
from data.database import Database
from data.errors import Refused
from data.records import FinishReason, Message, RankingKind, Sampling
from tests.stories import a_turn, rank, somebody


def turn_of(
    *places: int, kind: RankingKind = "full", person: str = "ada", turn: str = "t", at: float = 0.0
) -> RankedTurn:
    many = len(places)
    return RankedTurn(
        ranking_id=f"{turn}-{person}",
        turn_id=turn,
        conversation_id=turn,
        person_id=person,
        source="human",
        kind=kind,
        created_at=at,
        prompt=({"role": "user", "content": "Count."},),
        replies=tuple("abcdefghi"[:many]),
        places=places,
        versions=("base",) * many,
        shown=tuple(range(many)),
        cut=(False,) * many,
        weight=1.0,
    )


def test_a_full_ranking_gives_every_pair_and_ties_half() -> None:
    assert turn_of(2, 1, 2).pairs() == [(1, 0, 1.0), (0, 2, 0.5), (1, 2, 1.0)]


def test_best_gives_the_winner_against_the_others_only() -> None:
    assert turn_of(2, 1, 2, kind="best").pairs() == [(1, 0, 1.0), (1, 2, 1.0)]


def test_all_bad_gives_no_pair() -> None:
    assert turn_of(1, 1, 1, kind="all_bad").pairs() == []


def test_parts_are_sixty_to_forty_and_of_the_conversation() -> None:
    parts = [turn_of(1, 2, turn=f"chat {number}").part for number in range(2000)]
    assert 0.57 <= parts.count("A") / 2000 <= 0.63
    assert turn_of(1, 2, turn="x").part == replace(turn_of(2, 1, turn="x"), ranking_id="other").part


def begun(conversation: str, *said: str) -> RankedTurn:
    """A ranking in a dialogue of which these are the user's words."""
    prompt = [{"role": "system", "content": "Be brief."}, *({"role": "user", "content": it} for it in said)]
    return replace(turn_of(1, 2, turn=conversation), prompt=tuple(prompt))


def test_dialogues_that_begin_alike_are_of_one_part_in_whatever_conversation() -> None:
    same = [begun(f"chat {i}", "Why does bread rise?\nTell me.", *["And then?"] * (i % 3)) for i in range(20)]
    assert len({turn.group for turn in same}) == len({turn.part for turn in same}) == 1
    assert begun("chat 0", "Why does bread rise?\nTell us.").group != same[0].group


@pytest.mark.parametrize("said", [("hi", "Why does bread rise in the oven?"), ("你好",), ()])
def test_after_a_short_opening_each_conversation_is_its_own(said: tuple[str, ...]) -> None:
    turns = [begun(f"chat {i}", *said) for i in range(20)]
    assert [turn.group for turn in turns] == [turn.conversation_id for turn in turns]
    assert {turn.part for turn in turns} == {"A", "B"}


def test_a_few_chinese_characters_are_no_short_opening() -> None:
    assert begun("one", "什么东西越洗越脏呢").group == begun("two", "什么东西越洗越脏呢").group


def test_a_snapshot_holds_the_texts_versions_and_cuts(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada, ["short", "long"], version=["base", "v000001"], question="Why?")
    ranking = rank(db, ada, replies[::-1], [1, 2])
    (turn,) = take_snapshot(db).turns
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
    assert take_snapshot(db).turns[0].cut == (False, True)


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
    (turn,) = take_snapshot(db).turns
    assert (turn.replies, turn.pairs()) == (("one", "two"), [(0, 1, 1.0)])
    assert version_record(db) == {}


def test_a_model_that_had_nothing_to_say_is_judged_for_it(db: Database) -> None:
    rank(db, somebody(db), with_an_empty_reply(db, ["one"], "stop"), [1, 2])
    assert take_snapshot(db).turns[0].pairs() == [(0, 1, 1.0)]
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
    assert [turn.ranking_id for turn in take_snapshot(db).turns] == [kept.id, last.id]


def test_an_edit_beats_what_it_replaced(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    edit = conversations.add_edit(db, replies[2].id, "four", ada.id)
    (turn,) = take_snapshot(db).turns
    assert (turn.ranking_id, turn.kind, turn.source) == (edit.id, "best", "human")
    assert (turn.replies, turn.pairs()) == (("four", "three"), [(0, 1, 1.0)])
    conversations.set_may_train(db, edit.conversation_id, False)
    assert take_snapshot(db).turns == ()


def test_what_is_deleted_between_two_rows_is_left_out(db: Database) -> None:
    ada = somebody(db)
    chats = [a_turn(db, ada) for _ in range(6)]
    for replies in chats[:3]:
        rank(db, ada, replies, [1, 2, 3])
    for replies in chats[3:]:
        conversations.add_edit(db, replies[0].id, "better", ada.id)
    turns = comparisons.stream_turns(db)
    found = [next(turns)]
    conversations.delete(db, chats[1][0].conversation_id)  # its row has been read with the first one's
    found += [next(turns), next(turns)]
    conversations.delete(db, chats[4][0].conversation_id)
    found += turns
    assert [turn.turn_id for turn in found] == [chats[at][0].parent_id for at in (0, 2, 3, 5)]


def test_a_snapshot_is_its_file(db: Database, tmp_path: Path) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada, ["één\u2028", "zwei\n", "三"]), [1, 2, 2])
    conversations.add_edit(db, a_turn(db, ada)[0].id, "better", ada.id)
    snapshot, path = take_snapshot(db), tmp_path / "snapshot.jsonl"
    comparisons.write_snapshot(snapshot, path)
    assert comparisons.read_snapshot(path) == snapshot
    assert hashlib.sha256(path.read_bytes()).hexdigest() == snapshot.sha256
    assert take_snapshot(db) == snapshot


def test_a_file_that_is_no_snapshot_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.jsonl"
    path.write_text('{"ranking_id": "x"}\n')
    with pytest.raises(Refused, match=r"Line 1 of .* is no ranking"):
        comparisons.read_snapshot(path)


def test_a_later_ranking_changes_the_hash_and_an_empty_snapshot_has_one(db: Database) -> None:
    empty = take_snapshot(db)
    assert empty.turns == ()
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert take_snapshot(db).sha256 != empty.sha256


def test_a_ranking_of_a_clock_that_was_ahead_weighs_no_more_than_those_of_now() -> None:
    now = time.time()
    one, ahead = weigh([turn_of(1, 2, at=now), turn_of(1, 2, at=now + 365 * 86400)])
    assert (one.weight, ahead.weight) == pytest.approx((1.0, 1.0))


def test_an_older_ranking_weighs_less_and_an_import_half() -> None:
    days = 86400.0
    old, new = weigh([turn_of(1, 2, at=0), turn_of(1, 2, at=60 * days)])
    assert (old.weight, new.weight) == (0.5, 1.0)
    assert weigh([replace(turn_of(1, 2), source="imported")])[0].weight == 0.5
    assert weigh([replace(turn_of(1, 2), source="imported", reliability=0.4)])[0].weight == 0.2


def test_weighing_again_starts_from_nothing() -> None:
    turns = [turn_of(1, 2, person=f"p{i % 5}", turn=f"t{i}", at=i * 86400.0) for i in range(40)]
    turns += [turn_of(1, 2, person="loud", turn=f"l{i}") for i in range(200)]
    assert weigh(weigh(turns)) == weigh(turns)
    assert weigh(weigh(turns)[:40]) == weigh(turns[:40])


@pytest.mark.parametrize(("others", "share"), [(3, 1 / 2), (9, 1 / 5), (60, 1 / 20)])
def test_nobody_has_more_of_the_night_than_their_share(others: int, share: float) -> None:
    loud = [turn_of(1, 2, person="loud", turn=f"l{number}") for number in range(500)]
    quiet = [turn_of(1, 2, person=f"p{number}", turn=f"q{number}") for number in range(others)]
    weighed = weigh(loud + quiet)
    total = sum(turn.weight for turn in weighed)
    largest = sum(turn.weight for turn in weighed if turn.person_id == "loud")
    expected = max(0.05, 2 / (others + 1))
    assert largest / total == pytest.approx(expected)
    assert expected == pytest.approx(share, rel=0.05)
    assert all(turn.weight == 1 for turn in weighed if turn.person_id != "loud")


def test_two_loud_people_stay_under_the_share_together() -> None:
    totals = [1000.0, 900.0, 1.0, 1.0, 1.0, 1.0]
    limit = largest_total(totals)
    capped = [min(limit, total) for total in totals]
    assert max(capped) <= sum(capped) / 3 + 1e-9


def test_below_four_people_there_is_no_cap() -> None:
    turns = [turn_of(1, 2, person="loud", turn=f"{number}") for number in range(50)]
    turns += [turn_of(1, 2, person="two"), turn_of(1, 2, person="three")]
    assert {turn.weight for turn in weigh(turns)} == {1.0}


def test_agreement_is_the_share_of_pairs_that_two_people_see_alike() -> None:
    ada, bob = turn_of(1, 2, 3, person="ada"), turn_of(1, 3, 2, person="bob")
    assert agreement([ada, bob]) == pytest.approx(2 / 3)
    assert agreement([ada, replace(bob, places=(1, 2, 3))]) == 1.0
    assert agreement([ada, replace(ada, source="simulated")]) is None
    assert agreement([ada, replace(bob, turn_id="elsewhere")]) is None


def test_versions_are_compared_where_they_met(db: Database) -> None:
    ada = somebody(db)
    both = ["base", "v000001", "base", "v000001"]
    for order in ([2, 1, 3, 1], [1, 1, 1, 1], [1, 2, 3, 4], [4, 1, 3, 2]):
        rank(db, ada, a_turn(db, ada, list("abcd"), version=both), order)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    rank(db, ada, a_turn(db, ada, list("abcd"), version=both), [1, 2, 3, 4], source="simulated")
    assert version_record(db) == {("v000001", "base"): (2, 1, 1)}


def test_versions_are_compared_in_the_newest_rankings(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.comparisons.RECORDED", 2)
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
