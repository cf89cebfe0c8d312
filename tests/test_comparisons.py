"""comparisons.py: pairs, parts, weights, the snapshot and what people agree on."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data import comparisons
from data.comparisons import RankedTurn, agreement, hits, in_rounds, largest_total, weigh
from data.errors import Refused
from data.records import RankingKind


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


def test_a_hit_is_a_decided_pair_whose_better_reply_has_more_and_as_much_is_half_of_one() -> None:
    pairs = turn_of(2, 1, 2).pairs()  # the second beats both others, which tie
    assert [pair.is_decided for pair in pairs] == [True, False, True]
    assert hits(pairs, [1.0, 2.0, 3.0]) == [1.0, 0.0]
    assert hits(pairs, [2.0, 2.0, 1.0]) == [0.5, 1.0]


def test_whoever_has_few_keeps_them_all_and_who_has_many_gets_the_places_left() -> None:
    order = in_rounds(["m1", "m2", "a1", "m3", "b1", "a2", "m4"], lambda item: item[0])
    assert order == ["m1", "a1", "b1", "m2", "a2", "m3", "m4"]
    assert in_rounds(["a1", "a2", "a3"], lambda item: item[0]) == ["a1", "a2", "a3"]
    assert in_rounds([], str) == []


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


def test_a_conversation_is_of_one_part_however_its_first_message_was_reworded() -> None:
    first = begun("chat 0", "Write a short poem about cats.")
    wordings = [f"Write a short poem about cats{'!' * i}" for i in range(1, 20)]
    reworded = [replace(begun("chat 0", said), opening="Write a short poem about cats.") for said in wordings]
    elsewhere = begun("chat 1", "Write a short poem about cats.")
    assert {turn.group for turn in (*reworded, elsewhere)} == {first.group}
    assert len({begun("chat 0", said).part for said in wordings}) == 2, "by their own words they would part"


def test_a_conversation_that_began_with_a_short_message_is_its_own_however_that_was_reworded() -> None:
    assert replace(begun("chat 0", "Write a short poem about cats."), opening="Hi").group == "chat 0"


def test_a_snapshot_of_an_earlier_release_has_no_openings_and_is_read(tmp_path: Path) -> None:
    turn, path = begun("chat 0", "Why does bread rise?"), tmp_path / "snapshot.jsonl"
    row = asdict(turn)
    del row["opening"]
    path.write_text(json.dumps(row) + "\n")
    assert comparisons.read_snapshot(path).turns == (turn,)


def test_a_few_chinese_characters_are_no_short_opening() -> None:
    assert begun("one", "什么东西越洗越脏呢").group == begun("two", "什么东西越洗越脏呢").group


def test_a_file_that_is_no_snapshot_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.jsonl"
    path.write_text('{"ranking_id": "x"}\n')
    with pytest.raises(Refused, match=r"Line 1 of .* is no ranking"):
        comparisons.read_snapshot(path)


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
