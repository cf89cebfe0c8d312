"""rankings.py: one current word per person and turn, the earlier kept, no nonsense stored."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from data import conversations, people, rankings
from data.database import Database
from data.errors import NotFound, Refused
from data.records import Message, Placement, Ranking, RankingKind, Sampling
from tests.stories import a_turn, places, rank, somebody


def save(db: Database, replies: list[Message], placements: list[Placement], **options: object) -> Ranking:
    values = {"kind": "full", "person_id": somebody(db).id, "turn_id": replies[0].parent_id, **options}
    return rankings.save(db, placements=placements, **values)  # type: ignore[arg-type]


def test_what_is_saved_is_what_was_said(db: Database) -> None:
    replies = a_turn(db, somebody(db))
    saved = save(
        db,
        replies,
        places(replies, [2, 1, 2]),
        dwell_ms=1200,
        reasons=["clear", "short"],
        comment=" so \0 it is ",
    )
    assert rankings.current(db, saved.turn_id, saved.person_id) == saved
    assert [entry.place for entry in saved.placements] == [2, 1, 2]
    assert (saved.dwell_ms, saved.reasons, saved.comment) == (1200, ("clear", "short"), "so \ufffd it is")
    assert rankings.order_text(saved.placements) == "B > A = C"


@pytest.mark.parametrize(
    ("order", "stored"), [([1, 1, 3], [1, 1, 2]), ([9, 4, 7], [3, 1, 2]), ([5, 5, 5], [1, 1, 1])]
)
def test_places_are_compacted(db: Database, order: list[int], stored: list[int]) -> None:
    ranking = rank(db, somebody(db), a_turn(db, somebody(db)), order)
    assert [entry.place for entry in ranking.placements] == stored


def test_another_ranking_supersedes_the_first_and_keeps_it(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    first = rank(db, ada, replies, [1, 2, 3])
    second = rank(db, ada, replies, [3, 2, 1])
    assert (first.revision, second.revision) == (1, 2)
    assert rankings.current(db, first.turn_id, ada.id) == second
    assert rankings.revisions(db, first.turn_id, ada.id) == [first, second]
    assert rankings.count(db) == 1


def test_people_and_sources_do_not_supersede_each_other(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    replies = a_turn(db, ada)
    rank(db, ada, replies, [1, 2, 3])
    rank(db, eve, replies, [1, 2, 3])
    rank(db, ada, replies, [1, 2, 3], source="simulated")
    assert rankings.count(db) == 3
    assert rankings.counts(db) == {
        "rankings": 3,
        "teaching": 3,
        "kinds": {"full": 3},
        "sources": {"human": 2, "simulated": 1},
    }


def test_a_double_submit_leaves_one_row(db: Database) -> None:
    replies = a_turn(db, somebody(db))
    first = save(db, replies, places(replies, [1, 2, 3]), idempotency_key="k")
    assert save(db, replies, places(replies, [3, 2, 1]), idempotency_key="k") == first
    assert save(db, replies, places(replies, [1, 2, 3])) == first
    assert rankings.revisions(db, first.turn_id, first.person_id) == [first]


def test_a_withdrawn_ranking_teaches_no_more_and_the_next_is_a_new_revision(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    ranking = rank(db, ada, replies, [1, 2, 3])
    assert rankings.withdraw(db, ranking.turn_id, ada.id)
    assert not rankings.withdraw(db, ranking.turn_id, ada.id)
    assert rankings.current(db, ranking.turn_id, ada.id) is None
    assert rankings.count(db) == 0
    assert rank(db, ada, replies, [1, 2, 3]).revision == 2


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("full", [1]),
        ("full", []),
        ("best", [1, 1, 2]),
        ("best", [1, 2, 3]),
        ("best", [1]),
        ("all_bad", [1, 2]),
        ("all_bad", []),
        ("skip", [1]),
        ("worst", [1, 2]),
    ],
)
def test_places_that_do_not_fit_the_kind_are_refused(
    db: Database, kind: RankingKind, order: list[int]
) -> None:
    replies = a_turn(db, somebody(db))
    with pytest.raises(Refused, match=" - "):
        save(db, replies, places(replies[: len(order)], order), kind=kind)
    assert rankings.counts(db)["rankings"] == 0


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("full", [1, 1]),
        ("full", [2, 1, 1]),
        ("best", [2, 1, 2]),
        ("all_bad", [1, 1, 1]),
        ("all_bad", [4]),
        ("skip", []),
    ],
)
def test_places_that_fit_the_kind_are_stored(db: Database, kind: RankingKind, order: list[int]) -> None:
    replies = a_turn(db, somebody(db))
    assert save(db, replies, places(replies[: len(order)], order), kind=kind).kind == kind


def first_twice(good: list[Placement]) -> list[Placement]:
    return [good[0], replace(good[0], shown=1, place=2)]


WRONG: dict[str, Callable[[list[Placement]], list[Placement]]] = {
    "does not belong to this turn": lambda good: [good[0], Placement("0" * 36, 2, 1)],
    "is placed twice": first_twice,
    "out of range": lambda good: [replace(good[0], place=0), good[1]],
    "same position on the page": lambda good: [good[0], replace(good[1], shown=0)],
}


@pytest.mark.parametrize("words", WRONG)
def test_forged_places_are_refused(db: Database, words: str) -> None:
    replies = a_turn(db, somebody(db))
    with pytest.raises(Refused, match=words):
        save(db, replies, WRONG[words](places(replies, [1, 2, 3])))


def test_replies_of_another_turn_and_unfinished_ones_are_refused(db: Database) -> None:
    ada = somebody(db)
    replies, foreign = a_turn(db, ada), a_turn(db, ada)
    with pytest.raises(Refused, match="does not belong to this turn"):
        save(db, replies, places([replies[0], foreign[0]], [1, 2]))
    (streaming,) = conversations.start_replies(db, str(replies[0].parent_id), "base", Sampling(), [1])
    with pytest.raises(Refused, match="still being written"):
        save(db, replies, places([replies[0], streaming], [1, 2]))


def test_a_deleted_turn_is_not_found_and_a_reply_is_no_turn(db: Database) -> None:
    replies = a_turn(db, somebody(db))
    with pytest.raises(Refused, match="name the turn, not a reply"):
        save(db, replies, places(replies, [1, 2, 3]), turn_id=replies[0].id)
    conversations.delete(db, replies[0].conversation_id)
    with pytest.raises(NotFound, match="deleted"):
        save(db, replies, places(replies, [1, 2, 3]))


def test_only_what_may_teach_is_counted(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    rank(db, ada, a_turn(db, ada, may_train=False), [1, 2, 3])
    rank(db, eve, a_turn(db, eve), [1, 2, 3])
    assert rankings.count(db) == 2
    people.set_disabled(db, eve.id, True)
    assert rankings.count(db) == 1


def test_a_skip_does_not_teach(db: Database) -> None:
    replies = a_turn(db, somebody(db))
    save(db, replies, [], kind="skip")
    assert rankings.count(db) == 0
    assert rankings.counts(db)["kinds"] == {"skip": 1}


def test_only_rankings_between_two_times_are_counted(db: Database) -> None:
    ada = somebody(db)
    first = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert rankings.count(db, after=first.created_at) == 0
    second = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert rankings.count(db, after=first.created_at) == 1
    assert rankings.count(db, until=first.created_at) == 1
    assert rankings.count(db, after=first.created_at, until=second.created_at) == 1
    assert rankings.count(db, after=second.created_at, until=first.created_at) == 0


@pytest.mark.parametrize("most, told", [(1, 1), (2, 2), (9, 3)])
def test_counting_stops_where_it_is_told_to(db: Database, most: int, told: int) -> None:
    ada = somebody(db)
    for _ in range(3):
        rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert rankings.count(db, most=most) == told


def test_the_shown_order_is_random_by_turn_and_person_and_stays(db: Database) -> None:
    ids = ["a", "b", "c", "d"]
    assert rankings.shown_order("turn", "ada", ids) == rankings.shown_order("turn", "ada", ids[::-1])
    firsts = [rankings.shown_order(f"turn {number}", "ada", ids)[0] for number in range(400)]
    assert all(70 <= firsts.count(id) <= 130 for id in ids)


def test_the_order_is_told_in_letters_of_the_page() -> None:
    placed = [Placement("x", 2, 2), Placement("y", 1, 1), Placement("z", 1, 0)]
    assert rankings.order_text(placed) == "A = B > C"
    assert rankings.order_text(placed, "123") == "1 = 2 > 3"
    assert rankings.order_text([]) == ""
