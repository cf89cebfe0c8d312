"""What people do on the chat page, with a real engine on the tiny model: send, continue, branch, delete."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.pages import fair, markdown
from chatbot.pages.actions import Actions
from chatbot.pages.chat import build_chat, follow
from chatbot.pages.payload import Payload
from chatbot.pages.sidebar import version_view
from chatbot.turns import Turns
from data import conversations, messages, people, rankings
from data.database import Database
from data.errors import Busy, Problem, Refused
from data.records import FinishReason, Person, RankingKind, Sampling
from data.snapshots import taught_turns
from tests.operating import add_version
from tests.stories import a_turn, rank, somebody


@pytest.fixture
def actions(db: Database, engine: Engine) -> Iterator[Actions]:
    turns = Turns(db, engine, max_new_tokens=6)
    yield Actions(db, turns, ServeConfig())
    turns.close()


@pytest.fixture
def ada(db: Database) -> Person:
    return somebody(db)


def sent(actions: Actions, person: Person, **values: Any) -> str:
    """Sends a message, waits for its replies; the turn."""
    _, turn_id = actions.send(person, Payload({"text": "Hello.", "replies": 3, **values}))
    live = actions.turns.live(turn_id)
    assert live is not None and live.wait(30)
    return turn_id


def visitor(person_id: str | None) -> Any:
    return SimpleNamespace(username=person_id, cookies={}, headers={}, session_hash="tab")


def test_a_message_begins_a_conversation_with_replies(actions: Actions, ada: Person) -> None:
    turn_id = sent(actions, ada)
    board = actions.board(ada, turn_id, 0)
    assert [reply["state"] in ("stop", "length") for reply in board["replies"]] == [True] * 3
    [chat] = conversations.list_for(actions.db, ada.id)
    assert chat.title == "Hello." and chat.may_train


def test_the_next_message_hangs_under_the_best_reply(actions: Actions, ada: Person) -> None:
    turn_id = sent(actions, ada)
    replies = messages.replies(actions.db, turn_id)
    rank(actions.db, ada, replies, [2, 1, 3])
    second = sent(actions, ada, conversation_id=replies[0].conversation_id, turn_id=turn_id)
    assert messages.get(actions.db, second).parent_id == replies[1].id
    history = actions.show(ada, replies[0].conversation_id, 0)[0]
    assert [turn["text"] for turn in history["turns"]] == ["Hello.", "Hello."]
    assert history["turns"][0]["reply"]["text"] == replies[1].content


def test_the_same_key_twice_is_one_turn(actions: Actions, ada: Person) -> None:
    assert sent(actions, ada, key="k") == sent(actions, ada, key="k")
    assert len(conversations.list_for(actions.db, ada.id)) == 1


def test_an_untaught_chat_stays_untaught_when_sent_twice(actions: Actions, ada: Person) -> None:
    assert sent(actions, ada, key="k", may_train=False) == sent(actions, ada, key="k", may_train=False)
    [chat] = conversations.list_for(actions.db, ada.id)
    assert not chat.may_train


@pytest.mark.parametrize("may_train", [True, False])
def test_a_first_message_that_cannot_be_stored_leaves_no_empty_chat(
    actions: Actions, ada: Person, monkeypatch: pytest.MonkeyPatch, may_train: bool
) -> None:
    def is_locked(*_: object, **__: object) -> None:
        raise Busy("The database is locked - try again in a moment.")

    monkeypatch.setattr(conversations, "add_user_message", is_locked)
    with pytest.raises(Busy):
        sent(actions, ada, key="k", may_train=may_train)
    assert conversations.list_for(actions.db, ada.id) == []


def test_a_message_sent_again_from_its_own_turn_is_answered_once(actions: Actions, ada: Person) -> None:
    chat = conversations.create(actions.db, ada.id)
    turn = conversations.add_user_message(actions.db, chat.id, None, "Hello.", ada.id, request_key="k")
    here = {"conversation_id": chat.id, "turn_id": turn.id, "key": "k"}
    assert sent(actions, ada, **here) == turn.id == actions.send(ada, Payload({"text": "Hello.", **here}))[1]
    assert len(messages.replies(actions.db, turn.id)) == 3


def test_a_message_answered_long_ago_is_shown_without_a_warning(actions: Actions, ada: Person) -> None:
    turn_id = sent(actions, ada, key="k")
    later = Actions(actions.db, Turns(actions.db, actions.turns.engine), actions.config)
    page, again = later.send(ada, Payload({"text": "Hello.", "key": "k"}))
    assert again == turn_id and page[2]["is_sent"]


@pytest.mark.parametrize(
    "values",
    [
        {"text": " "},
        {"text": "x" * 32_001},
        {"text": "x" * 200_001},
        {"text": "字" * 20_000, "key": "k"},
        {"text": 5},
        {"replies": 0},
        {"replies": 10},
        {"replies": True},
        {"conversation_id": "none"},
        {"conversation_id": "c", "turn_id": "none"},
        {"key": ["k"]},
    ],
)
def test_a_bad_message_is_refused_and_leaves_nothing(
    actions: Actions, ada: Person, values: dict[str, Any]
) -> None:
    with pytest.raises(Problem):
        actions.send(ada, Payload({"text": "Hello.", **values}))
    assert conversations.list_for(actions.db, ada.id) == []


def test_a_refused_message_leaves_the_page_where_it_was(actions: Actions, ada: Person) -> None:
    turn_id = sent(actions, ada)
    page, followed = actions.stay(ada, Payload({"turn_id": turn_id, "key": "k", "look": 3}), "Why.")
    assert followed == turn_id and page[1]["turn_id"] == turn_id
    assert page[2]["answered"] == "k" and not page[2]["is_sent"] and page[2]["look"] == 3
    assert page[2]["reason"] == "Why."


def test_every_part_of_the_page_says_which_look_asked_for_it(actions: Actions, ada: Person) -> None:
    turn_id = sent(actions, ada)
    (turn, _), (blank, _) = (actions.stay(ada, Payload({"turn_id": t, "look": 3})) for t in (turn_id, ""))
    found = actions.search_chats(ada, Payload({"search": "Hello", "look": 3}))
    for part in (*turn, *blank, found):
        assert (part["look"], part["default_replies"]) == (3, actions.config.replies)


OWN_THINGS = (
    "revisit regenerate branch send save_ranking withdraw demonstrate stop_reply stop_turn"
    " open_chat switch_branch rename_chat export_chat delete_chat set_training"
)


@pytest.mark.parametrize("action", OWN_THINGS.split())
def test_another_persons_conversation_is_refused(actions: Actions, ada: Person, action: str) -> None:
    replies = a_turn(actions.db, ada)
    chat_id = replies[0].conversation_id
    payload = Payload(
        {
            "turn_id": replies[0].parent_id,
            "message_id": replies[0].id,
            "conversation_id": chat_id,
            "target": chat_id,
            "text": "Mine now.",
            "title": "Mine",
            "kind": "skip",
            "shown": [reply.id for reply in replies],
        }
    )
    with pytest.raises(Refused, match="another person"):
        getattr(actions, action)(somebody(actions.db, "eve"), payload)
    assert len(messages.list_for(actions.db, chat_id)) == 4
    assert rankings.counts(actions.db)["rankings"] == 0


def test_a_rewording_is_kept_as_a_demonstration(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada)
    payload = Payload({"turn_id": replies[0].parent_id, "message_id": replies[0].id, "text": "Better."})
    board = actions.demonstrate(ada, payload)
    assert [reply["edit"]["text"] for reply in board["replies"] if reply["edit"]] == ["Better."]


def test_undo_withdraws_the_ranking(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada)
    rank(actions.db, ada, replies, [1, 2, 3])
    board = actions.withdraw(ada, Payload({"turn_id": replies[0].parent_id}))
    assert board["saved"] is None and {reply["version"] for reply in board["replies"]} == {None}


def test_a_branch_is_a_sibling_of_the_message(actions: Actions, ada: Person) -> None:
    turn_id = sent(actions, ada)
    page, branch = actions.branch(ada, Payload({"turn_id": turn_id, "text": "Other words.", "replies": 1}))
    assert messages.get(actions.db, branch).parent_id is None and branch != turn_id
    assert [turn["text"] for turn in page[0]["turns"]] == ["Other words."]


@pytest.mark.parametrize("touch", ["demonstrate", "regenerate"])
def test_what_is_done_at_an_earlier_turn_hides_none_of_the_later(
    actions: Actions, ada: Person, touch: str
) -> None:
    replies = a_turn(actions.db, ada)
    chat_id, first = replies[0].conversation_id, str(replies[0].parent_id)
    sent(actions, ada, conversation_id=chat_id, turn_id=first, text="Go on.")
    payload = Payload({"turn_id": first, "message_id": replies[0].id, "text": "Better.", "replies": 1})
    getattr(actions, touch)(ada, payload)
    assert not actions.revisit(ada, payload)[0][0]["is_latest"]
    history = actions.open_chat(ada, Payload({"conversation_id": chat_id}))[0][0]
    assert [turn["text"] for turn in history["turns"]] == ["Count for me.", "Go on."]
    assert history["is_latest"]


def test_the_way_back_to_another_branch_leads_to_its_latest_turn(actions: Actions, ada: Person) -> None:
    first = sent(actions, ada, text="First words.")
    chat_id = messages.get(actions.db, first).conversation_id
    sent(actions, ada, conversation_id=chat_id, turn_id=first, text="Go on.")
    page, other = actions.branch(ada, Payload({"turn_id": first, "text": "Other words.", "replies": 1}))
    [turn] = page[0]["turns"]
    assert turn["branches"] == [first, other]
    page, turn_id = actions.switch_branch(ada, Payload({"turn_id": first}))
    assert [turn["text"] for turn in page[0]["turns"]] == ["First words.", "Go on."]
    assert [turn["branches"] for turn in page[0]["turns"]] == [[first, other], [turn_id]]
    assert page[1]["turn_id"] == turn_id and not page[0]["is_latest"]


def test_asking_for_more_replies_keeps_the_vote_on_the_first(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada)
    turn_id = str(replies[0].parent_id)
    shown = [reply["id"] for reply in actions.board(ada, turn_id, 0)["replies"]]
    ranking = {"kind": "all_bad", "places": dict.fromkeys(shown, 1), "shown": shown}
    page, _ = actions.regenerate(ada, Payload({"turn_id": turn_id, "replies": 1, "ranking": ranking}))
    assert len(page[1]["replies"]) == 4
    saved = rankings.current(actions.db, turn_id, ada.id)
    assert saved and saved.kind == "all_bad" and len(saved.placements) == 3


def test_another_wording_stores_the_vote_on_the_board_once(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada)
    turn_id = str(replies[0].parent_id)
    shown = [reply["id"] for reply in actions.board(ada, turn_id, 0)["replies"]]
    vote = {"kind": "best", "places": dict(zip(shown, (1, 2, 2), strict=True)), "shown": shown}
    words = {"turn_id": turn_id, "text": "Other words.", "replies": 1, "key": "k"}
    for _ in range(2):  # the second one is sent by a page that missed the answer
        actions.branch(ada, Payload({**words, "ranked": turn_id, "ranking": vote}))
    [saved] = rankings.revisions(actions.db, turn_id, ada.id)
    assert saved.kind == "best"


@pytest.mark.parametrize(
    ("kind", "places", "order", "letter"),
    [("full", [2, 1, 2], "B > A = C", "B"), ("best", [2, 2, 1], "C > A = B", "C")],
)
def test_the_history_tells_which_kind_of_vote_an_order_is(
    actions: Actions, ada: Person, kind: RankingKind, places: list[int], order: str, letter: str
) -> None:
    first, *_ = replies = a_turn(actions.db, ada)
    shown = [reply["id"] for reply in actions.board(ada, str(first.parent_id), 0)["replies"]]
    rank(actions.db, ada, sorted(replies, key=lambda reply: shown.index(reply.id)), places, kind=kind)
    conversations.add_user_message(actions.db, first.conversation_id, first.id, "Go on.", ada.id)
    vote = actions.show(ada, first.conversation_id, 0)[0]["turns"][0]["vote"]
    assert vote == {"kind": kind, "word": f"order_{kind}", "order": order, "letter": letter}


def test_of_a_single_reply_it_can_be_said_that_it_is_bad_and_nights_learn_it(
    actions: Actions, ada: Person
) -> None:
    [reply] = a_turn(actions.db, ada, ["one"])
    vote = {"kind": "all_bad", "places": {reply.id: 1}, "shown": [reply.id], "reasons": ["unsafe"]}
    board = actions.save_ranking(ada, Payload({"turn_id": reply.parent_id, **vote}))
    assert board["saved"]["word"] == "order_bad"
    [learned] = taught_turns(actions.db)
    assert (learned.kind, learned.replies) == ("all_bad", ("one",))
    conversations.add_user_message(actions.db, reply.conversation_id, reply.id, "Go on.", ada.id)
    history = actions.show(ada, reply.conversation_id, 0)[0]
    assert history["turns"][0]["vote"]["word"] == "order_bad"


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.0, 0, 0), (0.2, 10, 35), (1.0, 100, 100)])
def test_of_those_who_ask_for_one_reply_a_share_gets_two_to_compare(
    actions: Actions, share: float, fewest: int, most: int
) -> None:
    asked = replace(actions, config=ServeConfig(compare_share=share))
    counts, again = ([asked._count(Payload({"replies": 1}), f"key {n}") for n in range(100)] for _ in "ab")
    assert set(counts) <= {1, 2} and fewest <= counts.count(2) <= most
    assert counts == again
    assert asked._count(Payload({"replies": 3}), "key") == 3


def test_a_message_that_asks_for_one_reply_may_be_answered_by_two(actions: Actions, ada: Person) -> None:
    asked = replace(actions, config=ServeConfig(compare_share=1.0))
    turn_id = sent(asked, ada, replies=1, key="k")
    assert len(asked.board(ada, turn_id, 0)["replies"]) == 2
    page, _ = asked.regenerate(ada, Payload({"turn_id": turn_id, "replies": 1}))
    assert len(page[1]["replies"]) == 3


def test_what_is_finished_is_rendered_once_for_all_who_look(
    actions: Actions, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    render, rendered = markdown.blocks, Counter[str]()

    def counted(text: str) -> list[str]:
        rendered[text] += 1
        return render(text)

    monkeypatch.setattr(markdown, "blocks", counted)
    first, *_ = a_turn(actions.db, ada, ["settled one", "settled two"])
    conversations.add_edit(actions.db, first.id, "settled three", ada.id)
    conversations.add_user_message(actions.db, first.conversation_id, first.id, "Go on.", ada.id)
    for _ in range(3):
        actions.board(ada, str(first.parent_id), 0)
        actions.show(ada, first.conversation_id, 0)
    assert rendered == Counter(["settled one", "settled two", "settled three"])


def test_more_replies_join_those_that_are_there(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada)
    _, turn_id = actions.regenerate(ada, Payload({"turn_id": replies[0].parent_id, "replies": 2}))
    live = actions.turns.live(turn_id)
    assert live is not None and live.wait(30)
    assert len(actions.board(ada, turn_id, 0)["replies"]) == 5


def asked_again(actions: Actions, person: Person, turn_id: str, **values: Any) -> list[str]:
    """Regenerates and waits; the ids of the cards."""
    actions.regenerate(person, Payload({"turn_id": turn_id, **values}))
    live = actions.turns.live(turn_id)
    assert live is not None and live.wait(30)
    return [reply["id"] for reply in actions.board(person, turn_id, 0)["replies"]]


def test_regenerate_asks_for_no_more_than_the_board_can_show(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada, [*"abcde"])
    turn_id = str(replies[0].parent_id)
    before = [reply["id"] for reply in actions.board(ada, turn_id, 0)["replies"]]
    rank(actions.db, ada, replies, [2, 1, 3, 3, 4])
    shown = asked_again(actions, ada, turn_id, replies=5)
    assert len(shown) == len(messages.replies(actions.db, turn_id)) == 9
    assert set(before) <= set(shown)
    assert len(actions.board(ada, turn_id, 0)["saved"]["places"]) == 5
    with pytest.raises(Refused, match="nine replies, as many as can be compared - rank them"):
        actions.regenerate(ada, Payload({"turn_id": turn_id, "replies": 1}))


def test_where_the_board_is_full_regenerate_still_stores_the_vote(actions: Actions, ada: Person) -> None:
    turn_id = str(a_turn(actions.db, ada, [*"abcdefghi"])[0].parent_id)
    shown = [reply["id"] for reply in actions.board(ada, turn_id, 0)["replies"]]
    vote = {"kind": "all_bad", "places": dict.fromkeys(shown, 1), "shown": shown}
    with pytest.raises(Refused, match="nine"):
        actions.regenerate(ada, Payload({"turn_id": turn_id, "replies": 1, "ranking": vote}))
    assert rankings.current(actions.db, turn_id, ada.id) is not None


def test_replies_that_wrote_nothing_are_not_shown_and_take_no_room(actions: Actions, ada: Person) -> None:
    first, *_ = a_turn(actions.db, ada, ["a", "b", "c", "d"])
    turn_id = str(first.parent_id)
    reasons: list[FinishReason] = ["failed", "cancelled", "interrupted", "stop"]
    for reply, reason in zip(
        conversations.start_replies(actions.db, turn_id, "base", Sampling(), range(4)), reasons, strict=True
    ):
        conversations.finish_reply(actions.db, reply.id, "", 0, reason)
    states = [reply["state"] for reply in actions.board(ada, turn_id, 0)["replies"]]
    assert states == ["stop"] * 5, "a model that chose to say nothing can be ranked"
    assert len(asked_again(actions, ada, turn_id, replies=9)) == 9


def test_going_back_shows_an_earlier_turn(actions: Actions, ada: Person) -> None:
    first = sent(actions, ada)
    chat_id = messages.get(actions.db, first).conversation_id
    sent(actions, ada, conversation_id=chat_id, turn_id=first)
    history, board, _, _ = actions.revisit(ada, Payload({"turn_id": first}))[0]
    assert board["turn_id"] == first and not history["is_latest"] and len(history["turns"]) == 1


def test_the_sidebar_knows_chats_links_and_version(actions: Actions, ada: Person) -> None:
    a_turn(actions.db, ada, question="About apples?")
    a_turn(actions.db, ada, question="About pears?")
    side = actions.search_chats(ada, Payload({"search": "pears"}))
    assert [chat["title"] for chat in side["chats"]] == ["About pears?"]
    assert side["links"] == [("account", "/account/")] and side["version"]["name"] == "base"
    people.set_role(actions.db, ada.id, "operator")
    links = actions.search_chats(people.get(actions.db, ada.id), Payload({}))["links"]
    assert ("operate", "/operate/") in links


def test_the_sidebar_names_the_version_that_answers_not_the_one_that_should(
    actions: Actions, ada: Person
) -> None:
    add_version(actions.db, "v000001")
    assert actions.search_chats(ada, Payload({}))["version"]["name"] == "base"
    actions.turns.engine.load("v000001", None)
    actions.turns.engine.serve("v000001")
    version = actions.search_chats(ada, Payload({}))["version"]
    assert (version["name"], version["rankings"], version["yours"]) == ("v000001", 7, 0)


def test_of_a_fine_tuned_version_the_sidebar_counts_demonstrations(db: Database, ada: Person) -> None:
    add_version(db, "v000001", rankings=0, report={"demonstrations": 12})
    version = version_view(db, ada, "v000001")
    assert (version["word"], version["demonstrations"], version["yours"]) == ("imitates", 12, 0)
    assert version_view(db, ada, "base")["word"] == "trained_on_none"


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("../Äpfel & Birnen: \r\n 2/3?", "-apfel-birnen-2-3"),
        ("苹果", ""),
        ("word " * 20, "-word-word-word-word-word-word-word-word"),
    ],
)
def test_exports_of_one_minute_have_names_of_their_own(
    actions: Actions, ada: Person, title: str, slug: str
) -> None:
    """The first half of an id is the time."""
    chats = [conversations.create(actions.db, ada.id, title).id for _ in range(2)]
    names = [actions.export_chat(ada, Payload({"target": id}))["file"]["name"] for id in chats]
    assert names == [f"night-school{slug}-{id[-8:]}.json" for id in chats] and names[0] != names[1]


def test_a_chat_is_renamed_exported_and_deleted(actions: Actions, ada: Person) -> None:
    chat_id = a_turn(actions.db, ada)[0].conversation_id
    here = {"target": chat_id, "conversation_id": chat_id}
    assert actions.rename_chat(ada, Payload({**here, "title": "Counting"}))["chats"][0]["title"] == "Counting"
    file = actions.export_chat(ada, Payload(here))["file"]
    assert file["name"].endswith(".json") and "Count for me." in file["text"]
    assert file["name"] == f"night-school-counting-{chat_id[-8:]}.json"
    page, turn_id = actions.delete_chat(ada, Payload(here))
    assert turn_id == "" and page[0]["turns"] == [] and page[3]["chats"] == []


def test_deleting_another_chat_leaves_the_page_at_its_turn(actions: Actions, ada: Person) -> None:
    first = a_turn(actions.db, ada)[0]
    turn_id, chat_id = str(first.parent_id), first.conversation_id
    conversations.add_user_message(actions.db, chat_id, first.id, "Go on.", ada.id)
    other = a_turn(actions.db, ada)[0]
    sent = {"target": other.conversation_id, "conversation_id": chat_id, "turn_id": turn_id}
    page, shown = actions.delete_chat(ada, Payload(sent))
    assert (shown, len(page[3]["chats"])) == (turn_id, 1)
    strange = a_turn(actions.db, ada)[0]
    sent = {"target": strange.conversation_id, "conversation_id": chat_id, "turn_id": str(strange.parent_id)}
    _, shown = actions.delete_chat(ada, Payload(sent))
    assert shown and shown != turn_id, "a turn of another chat is not shown: the latest is"


def test_training_is_switched_off_for_one_chat(actions: Actions, ada: Person) -> None:
    chat_id = a_turn(actions.db, ada)[0].conversation_id
    actions.set_training(ada, Payload({"conversation_id": chat_id, "may_train": False}))
    assert not conversations.get(actions.db, chat_id).may_train


def test_what_is_continued_after_a_skip_keeps_its_version_back(actions: Actions, ada: Person) -> None:
    replies = a_turn(actions.db, ada)
    turn_id = str(replies[0].parent_id)
    rankings.save(actions.db, turn_id=turn_id, person_id=ada.id, kind="skip", placements=[])
    conversations.add_user_message(actions.db, replies[0].conversation_id, replies[0].id, "Go on.", ada.id)
    history = actions.show(ada, replies[0].conversation_id, 0)[0]
    assert history["turns"][0]["reply"]["version"] is None


def test_a_single_reply_keeps_its_version_back_for_others_may_join_it(actions: Actions, ada: Person) -> None:
    [reply] = a_turn(actions.db, ada, ["one"])
    conversations.add_user_message(actions.db, reply.conversation_id, reply.id, "Go on.", ada.id)
    history = actions.show(ada, reply.conversation_id, 0)[0]
    assert history["turns"][0]["reply"]["version"] is None


def test_of_a_new_chat_the_server_says_nothing_about_training(actions: Actions, ada: Person) -> None:
    chat_id = a_turn(actions.db, ada)[0].conversation_id
    target = {"target": chat_id}
    views = [
        actions.search_chats(ada, Payload({"search": "x"})),
        actions.rename_chat(ada, Payload({**target, "title": "Counting"})),
        actions.export_chat(ada, Payload(target)),
        actions.stay(ada, Payload({"key": "k"}))[0][3],
        actions.delete_chat(ada, Payload(target))[0][3],
    ]
    assert [view["may_train"] for view in views] == [None] * 5


@pytest.mark.parametrize("person_id", [None, "", "nobody"])
def test_who_is_not_signed_in_is_told_so(actions: Actions, person_id: str | None) -> None:
    with pytest.raises(Refused, match="signed out"):
        actions.person(visitor(person_id))


def test_a_disabled_person_is_signed_out(actions: Actions, ada: Person) -> None:
    people.set_disabled(actions.db, ada.id, True)
    with pytest.raises(Refused, match="signed out"):
        actions.person(visitor(ada.id))


def followed(actions: Actions, person_id: str, **values: Any) -> list[Any]:
    """Everything that a message sent from the page brings back."""

    async def collect() -> list[Any]:
        asked = follow(actions, actions.send, visitor(person_id), Payload(values))
        return [seen async for seen in asked]

    return asyncio.run(collect())


def test_pages_that_take_long_hold_up_no_program(
    actions: Actions, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()

    def show(*arguments: object, **more: object) -> None:
        assert is_over.wait(60)
        raise Busy("Another process writes - try again.")

    monkeypatch.setattr(Actions, "show", show)

    async def visit_at_once() -> None:
        sent = Payload({"text": "", "conversation_id": "", "look": 0})
        pages = [anext(follow(actions, actions.open_chat, visitor(ada.id), sent)) for _ in range(40)]
        looking = [asyncio.ensure_future(page) for page in pages]
        await asyncio.sleep(0.5)
        try:
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 20)
        finally:
            is_over.set()
            await asyncio.gather(*looking, return_exceptions=True)

    asyncio.run(visit_at_once())


def test_who_is_signed_out_is_told_that_the_message_was_not_taken(actions: Actions) -> None:
    with pytest.warns(UserWarning, match="signed out"):
        [(_, _, composer, _)] = followed(actions, "nobody", text="Hello.", key="k", look=3)
    assert composer["answered"] == "k" and not composer["is_sent"] and composer["look"] == 3


def test_where_the_database_is_busy_the_page_hears_of_it(
    actions: Actions, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*arguments: object, **more: object) -> None:
        raise Busy("Another process writes - try again.")

    monkeypatch.setattr(Actions, "show", show)
    with pytest.warns(UserWarning, match="try again"):
        [(_, _, composer, _)] = followed(actions, ada.id, text="Hello.", key="k")
    assert composer["answered"] == "k" and not composer["is_sent"]


def test_a_turn_is_followed_to_its_end_past_a_busy_database(
    actions: Actions, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_id = sent(actions, ada, key="k")
    boards: list[Any] = [Busy("Another process writes - try again."), actions.board(ada, turn_id, 1)]

    def board(*arguments: object) -> Any:
        if isinstance(seen := boards.pop(0), Problem):
            raise seen
        return seen

    page = actions.show(ada, messages.get(actions.db, turn_id).conversation_id, 1)
    monkeypatch.setattr(Actions, "show", lambda *arguments, **more: page)
    monkeypatch.setattr(Actions, "board", board)
    *_, last = followed(actions, ada.id, text="Hello.", key="k", look=1)
    assert last[1]["turn_id"] == turn_id and boards == []


def test_of_too_many_pages_that_follow_a_turn_the_latest_goes_on(
    actions: Actions, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_id = sent(actions, ada)
    opened = Payload({"conversation_id": messages.get(actions.db, turn_id).conversation_id, "look": 0})
    monkeypatch.setattr(fair, "MOST_FOLLOWED", 1)
    monkeypatch.setattr(Actions, "board", lambda *_: {"turn_id": turn_id})
    monkeypatch.setattr(Turns, "live", lambda *_: SimpleNamespace(is_done=False))
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)

    async def look_twice() -> None:
        earlier, later = (follow(actions, actions.open_chat, visitor(ada.id), opened) for _ in range(2))
        for page in (earlier, later):
            await anext(page)
            await anext(page)
        assert [seen async for seen in earlier] == [] and "too many pages - reload" in told[0]
        await anext(later)
        await later.aclose()

    asyncio.run(look_twice())


def test_no_event_of_the_page_is_described_as_an_api(actions: Actions) -> None:
    async def build() -> gr.Blocks:
        return build_chat(actions.db, actions.turns, actions.config)

    # Outside a running loop Gradio makes one of its own for each page and never closes it.
    page = asyncio.run(build())
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}
    assert len(page.fns) == 18
