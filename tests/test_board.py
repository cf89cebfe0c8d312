"""What the board shows, and what it refuses from a browser."""

import time
from typing import Any

import pytest

from chatbot.pages import board as boards
from chatbot.pages.payload import Payload
from chatbot.turns import Turns
from data import conversations, messages, rankings
from data.database import Database
from data.errors import Refused
from data.records import Message, Person, Sampling
from tests.stories import a_turn, rank, somebody


class Quiet(Turns):
    """Turns of which none is being written: all that the board needs of a server at rest."""

    def __init__(self) -> None:
        pass

    def live(self, turn_id: str) -> None:
        return None


@pytest.fixture
def ada(db: Database) -> Person:
    return somebody(db)


@pytest.fixture
def turn(db: Database, ada: Person) -> Message:
    return messages.get(db, str(a_turn(db, ada, ["one", "two", "**three**", "four"])[0].parent_id))


def view(db: Database, person: Person, turn: Message) -> dict[str, Any]:
    return boards.board_view(db, Quiet(), person, turn.id)


def sent(db: Database, person: Person, turn: Message, ranks: dict[str, int], **more: Any) -> Payload:
    """What board.js sends for places by letter."""
    shown = view(db, person, turn)["replies"]
    ids = {reply["letter"]: reply["id"] for reply in shown}
    values = {"kind": "full", "places": {ids[letter]: place for letter, place in ranks.items()}}
    return Payload(values | {"shown": [reply["id"] for reply in shown]} | more)


def test_cards_are_lettered_in_the_shuffled_order(db: Database, ada: Person, turn: Message) -> None:
    shown = view(db, ada, turn)["replies"]
    ids = [reply.id for reply in messages.replies(db, turn.id)]
    assert [reply["letter"] for reply in shown] == ["A", "B", "C", "D"]
    assert [reply["id"] for reply in shown] == rankings.shown_order(turn.id, ada.id, ids)


def test_another_person_sees_another_order(db: Database, ada: Person, turn: Message) -> None:
    orders = {tuple(r.id for r in boards.shown_replies(db, turn.id, f"person {n}")) for n in range(20)}
    assert len(orders) > 5


def test_the_version_is_hidden_until_the_vote(db: Database, ada: Person, turn: Message) -> None:
    assert {reply["version"] for reply in view(db, ada, turn)["replies"]} == {None}
    boards.save_ranking(db, ada, turn, sent(db, ada, turn, {"A": 1, "B": 2}))
    versions = {reply["letter"]: reply["version"] for reply in view(db, ada, turn)["replies"]}
    assert versions == {"A": "base", "B": "base", "C": None, "D": None}


def test_a_skip_is_no_vote_and_reveals_nothing(db: Database, ada: Person, turn: Message) -> None:
    boards.save_ranking(db, ada, turn, sent(db, ada, turn, {}, kind="skip"))
    seen = view(db, ada, turn)
    assert seen["saved"]["kind"] == "skip" and {reply["version"] for reply in seen["replies"]} == {None}


def test_replies_that_come_after_the_vote_are_blind(db: Database, ada: Person, turn: Message) -> None:
    boards.save_ranking(db, ada, turn, sent(db, ada, turn, {"A": 1, "B": 2, "C": 3, "D": 4}))
    late = [reply.id for reply in conversations.start_replies(db, turn.id, "base", Sampling(), [1, 2])]
    versions = {reply["id"]: reply["version"] for reply in view(db, ada, turn)["replies"]}
    assert {id for id, version in versions.items() if version is None} == set(late)


def test_replies_are_sent_as_rendered_blocks_and_as_text(db: Database, ada: Person, turn: Message) -> None:
    [reply] = [one for one in view(db, ada, turn)["replies"] if one["text"] == "**three**"]
    assert reply["blocks"] == ["<p><strong>three</strong></p>\n"] and reply["state"] == "stop"


def test_the_saved_row_equals_what_was_sent(db: Database, ada: Person, turn: Message) -> None:
    more = {"reasons": ["tone", "clear"], "comment": "Kinder.", "dwell_ms": 4200}
    boards.save_ranking(db, ada, turn, sent(db, ada, turn, {"B": 1, "A": 2, "C": 2, "D": 3}, **more))
    saved = rankings.current(db, turn.id, ada.id)
    assert saved is not None and saved.kind == "full" and saved.dwell_ms == 4200
    assert rankings.order_text(saved.placements) == "B > A = C > D"
    assert saved.reasons == ("clear", "tone") and saved.comment == "Kinder."
    assert view(db, ada, turn)["saved"]["order"] == "B > A = C > D"


@pytest.mark.parametrize("reasons", [("wrong", "unsafe"), ("correct", "tone")])
def test_why_all_are_bad_is_stored_from_pages_new_and_old(
    db: Database, ada: Person, turn: Message, reasons: tuple[str, ...]
) -> None:
    places = dict.fromkeys("ABCD", 1)
    vote = sent(db, ada, turn, places, kind="all_bad", reasons=list(reversed(reasons)))
    assert boards.save_ranking(db, ada, turn, vote).reasons == reasons
    assert view(db, ada, turn)["saved"]["reasons"] == list(reasons)


def test_the_same_key_twice_is_one_ranking(db: Database, ada: Person, turn: Message) -> None:
    for places in ({"A": 1, "B": 2}, {"A": 2, "B": 1}):
        boards.save_ranking(db, ada, turn, sent(db, ada, turn, places, key="once"))
    assert view(db, ada, turn)["saved"]["order"] == "A > B"
    assert len(rankings.revisions(db, turn.id, ada.id)) == 1


@pytest.mark.parametrize(
    "forged",
    [
        {"kind": "worst"},
        {"kind": "full", "places": {}},
        {"places": {"not-a-reply": 1}},
        {"places": {"not-a-reply": 0}},
        {"places": [1, 2]},
        {"places": "A > B"},
        {"shown": []},
        {"shown": None},
        {"reasons": ["because"]},
        {"reasons": ["clear"] * 99},
        {"comment": "x" * 2001},
        {"comment": 5},
        {"dwell_ms": 1e9},
        {"dwell_ms": "long"},
        {"key": "x" * 65},
    ],
)
def test_a_forged_ranking_is_refused(
    db: Database, ada: Person, turn: Message, forged: dict[str, Any]
) -> None:
    with pytest.raises(Refused):
        boards.save_ranking(db, ada, turn, sent(db, ada, turn, {"A": 1, "B": 2}, **forged))
    assert rankings.current(db, turn.id, ada.id) is None


@pytest.mark.parametrize(("measured", "stored"), [(-5, 0), (3 * 86_400_000, boards.LONGEST_DWELL_MS)])
def test_a_page_left_open_for_days_or_a_clock_set_back_costs_no_vote(
    db: Database, ada: Person, turn: Message, measured: int, stored: int
) -> None:
    boards.save_ranking(db, ada, turn, sent(db, ada, turn, {"A": 1, "B": 2}, dwell_ms=measured))
    saved = rankings.current(db, turn.id, ada.id)
    assert saved is not None and saved.dwell_ms == stored


def test_replies_that_another_tab_asked_for_are_named_as_the_cause(
    db: Database, ada: Person, turn: Message
) -> None:
    ranking = sent(db, ada, turn, {"A": 1, "B": 2})
    conversations.start_replies(db, turn.id, "base", Sampling(), [1])
    with pytest.raises(Refused, match="another tab - open the chat again"):
        boards.save_ranking(db, ada, turn, ranking)


def test_a_reply_that_ends_without_a_word_while_the_person_votes_costs_no_vote(
    db: Database, ada: Person, turn: Message
) -> None:
    [late] = conversations.start_replies(db, turn.id, "base", Sampling(), [1])
    ids = {reply["letter"]: reply["id"] for reply in view(db, ada, turn)["replies"] if reply["id"] != late.id}
    one, other, *_ = ids
    ranking = sent(db, ada, turn, {one: 1, other: 2})
    conversations.finish_reply(db, late.id, "", 0, "failed")
    assert [reply["id"] for reply in view(db, ada, turn)["replies"]] == list(ids.values())
    saved = boards.save_ranking(db, ada, turn, ranking)
    assert [(entry.message_id, entry.place) for entry in saved.placements] == [(ids[one], 1), (ids[other], 2)]


def test_a_reply_of_another_turn_is_refused(db: Database, ada: Person, turn: Message) -> None:
    foreign = a_turn(db, ada)[0].id
    with pytest.raises(Refused, match="does not understand"):
        boards.save_ranking(db, ada, turn, sent(db, ada, turn, {"A": 1}, places={foreign: 1}))


def test_an_unfinished_reply_cannot_be_ranked(db: Database, ada: Person, turn: Message) -> None:
    conversations.start_replies(db, turn.id, "base", Sampling(), [1])
    with pytest.raises(Refused, match="still being written"):
        boards.save_ranking(db, ada, turn, sent(db, ada, turn, dict.fromkeys("ABCDE", 1)))


def test_regenerated_replies_come_after_the_first(db: Database, ada: Person, turn: Message) -> None:
    before = [reply["id"] for reply in view(db, ada, turn)["replies"]]
    time.sleep(boards.BATCH_GAP_SECONDS + 0.1)
    for reply in conversations.start_replies(db, turn.id, "base", Sampling(), range(4)):
        conversations.finish_reply(db, reply.id, "again", 1, "stop")
    after = [reply["id"] for reply in view(db, ada, turn)["replies"]]
    assert after[:4] == before and len(after) == 8


def test_at_most_nine_replies_are_shown(db: Database, ada: Person) -> None:
    turn_id = str(a_turn(db, ada, ["x"] * 12)[0].parent_id)
    assert len(boards.shown_replies(db, turn_id, ada.id)) == 9


def test_the_next_message_answers_the_best_ranked(db: Database, ada: Person, turn: Message) -> None:
    shown = boards.shown_replies(db, turn.id, ada.id)
    assert boards.continued_reply(db, ada, turn.id) == shown[0]
    rank(db, ada, shown, [3, 1, 2, 4])
    assert boards.continued_reply(db, ada, turn.id) == shown[1]


def test_a_chosen_reply_goes_before_the_best(db: Database, ada: Person, turn: Message) -> None:
    shown = boards.shown_replies(db, turn.id, ada.id)
    rank(db, ada, shown, [1, 2, 3, 4])
    assert boards.continued_reply(db, ada, turn.id, shown[2].id) == shown[2]
    assert boards.continued_reply(db, ada, turn.id, "nonsense") == shown[0]


def test_where_all_are_bad_the_first_is_continued(db: Database, ada: Person, turn: Message) -> None:
    shown = boards.shown_replies(db, turn.id, ada.id)
    rank(db, ada, shown, [1, 1, 1, 1], kind="all_bad")
    assert boards.continued_reply(db, ada, turn.id) == shown[0]


def test_a_reply_that_came_after_all_were_bad_is_continued(db: Database, ada: Person, turn: Message) -> None:
    rank(db, ada, boards.shown_replies(db, turn.id, ada.id), [1, 1, 1, 1], kind="all_bad")
    [late] = conversations.start_replies(db, turn.id, "base", Sampling(), [1])
    late = conversations.finish_reply(db, late.id, "again", 1, "stop")
    assert boards.continued_reply(db, ada, turn.id) == late


def test_a_rewording_is_continued_in_place_of_its_reply(db: Database, ada: Person, turn: Message) -> None:
    shown = boards.shown_replies(db, turn.id, ada.id)
    edit = conversations.add_edit(db, shown[0].id, "Better.", ada.id)
    assert boards.continued_reply(db, ada, turn.id) == edit
    [card] = [reply for reply in view(db, ada, turn)["replies"] if reply["edit"]]
    assert card["id"] == shown[0].id and card["edit"]["text"] == "Better."


def test_a_rewording_is_no_card_of_its_own(db: Database, ada: Person, turn: Message) -> None:
    reply = boards.shown_replies(db, turn.id, ada.id)[0]
    conversations.add_edit(db, reply.id, "Better.", ada.id)
    assert len(view(db, ada, turn)["replies"]) == 4


def test_a_reply_that_nobody_writes_any_more_reads_as_interrupted(
    db: Database, ada: Person, turn: Message
) -> None:
    conversations.start_replies(db, turn.id, "base", Sampling(), [1])
    assert "interrupted" in {reply["state"] for reply in view(db, ada, turn)["replies"]}


def test_the_template_of_the_board_holds_no_value() -> None:
    board = boards.Board(boards.empty_board())
    assert board.html_template == "<div></div>" and not board.css_template


@pytest.mark.parametrize("values", [None, "text", 5, ["a"]])
def test_a_payload_must_be_named_values(values: object) -> None:
    with pytest.raises(Refused, match="reload"):
        Payload(values)
