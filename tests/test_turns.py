"""Turns: stored before they are answered, once per click, streamed, stopped, and stored again."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from chatbot import generation as generation_module
from chatbot import turns as turns_module
from chatbot.engine import Engine
from chatbot.generation import Asked, Generation
from chatbot.pages.board import board_view
from chatbot.runner import LlamaRunner
from chatbot.turns import LiveTurn, Turns
from data import conversations, messages, people, rankings
from data.database import Database
from data.errors import Busy, NotFound, Problem, Refused
from data.records import Message, Person, Sampling
from data.text import clean
from tests.stories import somebody
from tests.waiting import until

SHORT = Sampling(max_new_tokens=8)
LONG = Sampling(temperature=0, max_new_tokens=900)


@pytest.fixture
def ada(db: Database) -> Person:
    return somebody(db)


@pytest.fixture
def turns(db: Database, engine: Engine) -> Iterator[Turns]:
    made = Turns(db, engine, max_new_tokens=8)
    yield made
    engine.close()
    made.close()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of decoding takes a while."""
    step = LlamaRunner.step

    def slow_step(self: LlamaRunner, beside: int) -> None:
        time.sleep(0.01)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", slow_step)


def done(live: LiveTurn) -> LiveTurn:
    assert live.wait(60)
    return live


def stored(db: Database, live: LiveTurn) -> list[Message]:
    """The turn's rows, in shown order."""
    return [messages.get(db, reply.message_id) for reply in live.replies]


def test_a_length_that_leaves_no_room_for_a_prompt_is_told_at_the_start(db: Database, engine: Engine) -> None:
    with pytest.raises(Refused, match="max_new_tokens 1000 leaves no room for a prompt in a context of 1024"):
        Turns(db, engine, max_new_tokens=1000)


def test_a_turn_is_stored_with_all_that_made_it(turns: Turns, db: Database, ada: Person) -> None:
    live = done(turns.send(ada, "Hello.", replies=3))
    [chat] = conversations.list_for(db, ada.id)
    assert (chat.id, chat.title) == (live.conversation_id, "Hello.")
    turn, rows = messages.get(db, live.turn_id), stored(db, live)
    assert (turn.content, turn.author_id, turn.role) == ("Hello.", ada.id, "user")
    for row, reply in zip(rows, live.replies, strict=True):
        assert (row.version, row.sampling, row.author_id) == ("base", turns.sampling, None)
        assert (row.content, row.tokens, row.seed) == (clean(reply.text), reply.tokens, reply.stream.seed)
        assert row.finish_reason == reply.finish_reason in ("stop", "length")
    assert len({row.seed for row in rows}) == 3


def test_the_message_is_stored_before_anything_is_written(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns.engine._scheduler, "max_waiting", 0)
    with pytest.raises(Busy):
        turns.send(ada, "Is anybody there?", request_key="k")
    assert messages.by_request_key(db, ada.id, "k").content == "Is anybody there?"  # type: ignore[union-attr]


def test_a_turn_that_was_busy_is_answered_when_sent_again(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full, pytest.raises(Busy):
        full.setattr(turns.engine._scheduler, "max_waiting", 0)
        turns.send(ada, "Hello.", request_key="k")
    live = done(turns.send(ada, "Hello.", replies=2, request_key="k"))
    assert len(messages.replies(db, live.turn_id)) == 2
    assert len(conversations.list_for(db, ada.id)) == 1


@pytest.mark.usefixtures("slowly")
def test_unfinished_rows_say_their_version_and_seed(turns: Turns, db: Database, ada: Person) -> None:
    live = turns.send(ada, "Hello.", replies=2, sampling=LONG)
    for row in stored(db, live):
        assert (row.finish_reason, row.version, row.sampling) == (None, "base", LONG)
        assert row.seed in {reply.stream.seed for reply in live.replies}
    assert not live.is_done and not live.wait(0)


def test_a_stored_seed_gives_the_same_reply_again(turns: Turns, db: Database, ada: Person) -> None:
    row = stored(db, done(turns.send(ada, "Hello.", replies=4)))[2]
    assert row.seed is not None
    messages = [{"role": "user", "content": "Hello."}]
    again = turns.engine.submit(messages, sampling=row.sampling, seeds=[row.seed], version=row.version)
    assert again.wait(60) and clean(again.replies[0].text) == row.content


def test_the_model_sees_what_was_said_before(turns: Turns, db: Database, ada: Person) -> None:
    first = done(turns.send(ada, "One.", replies=2))
    parent = first.replies[1]
    live = turns.send(
        ada, "Two.", conversation_id=first.conversation_id, parent_id=parent.message_id, replies=1
    )
    said = turns.engine.base.format.decode(done(live)._generation.prompt)
    assert said.count("<|im_start|>") == 4
    stored = messages.get(db, parent.message_id).content
    assert "One." in said and f"assistant\n{stored}" in said and "Two." in said


def test_replies_stand_in_the_order_shown_to_their_person(turns: Turns, db: Database, ada: Person) -> None:
    live = done(turns.send(ada, "Hello.", replies=5))
    made = [row.id for row in messages.replies(db, live.turn_id)]
    shown = [reply.message_id for reply in live.replies]
    assert shown == rankings.shown_order(live.turn_id, ada.id, made)


@pytest.mark.parametrize("text", ["", "  \n\t", "x" * 32_001, "x" * 1_000_000])
def test_an_empty_or_endless_message_is_refused(turns: Turns, db: Database, ada: Person, text: str) -> None:
    with pytest.raises(Refused, match=r"is empty - write|more than 32,000 - shorten"):
        turns.send(ada, text)
    assert conversations.list_for(db, ada.id) == []


def test_a_message_that_can_never_be_answered_is_refused_before_it_is_stored(
    turns: Turns, db: Database, ada: Person
) -> None:
    first = done(turns.send(ada, "Hello.", replies=1))
    too_long = "字" * turns.engine.base.context
    under = {"conversation_id": first.conversation_id, "parent_id": first.replies[0].message_id}
    for where in ({}, under):
        with pytest.raises(Refused, match=r"does not fit in .* tokens - shorten it"):
            turns.send(ada, too_long, request_key="k", **where)
    assert [chat.id for chat in conversations.list_for(db, ada.id)] == [first.conversation_id]
    assert len(messages.list_for(db, first.conversation_id)) == 2


def test_a_key_that_comes_again_is_answered_as_it_was_stored(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done(turns.send(ada, "One.", replies=1))
    under = {"conversation_id": first.conversation_id, "parent_id": first.replies[0].message_id}
    with monkeypatch.context() as full, pytest.raises(Busy):
        full.setattr(turns.engine._scheduler, "max_waiting", 0)
        turns.send(ada, "Two.", request_key="k", **under)
    live = done(turns.send(ada, "Other words.", replies=1, request_key="k"))
    said = turns.engine.base.format.decode(live._generation.prompt)
    assert "One." in said and "Two." in said and "Other words." not in said


@pytest.mark.parametrize("replies", [0, 10])
def test_a_count_out_of_range_is_refused(turns: Turns, db: Database, ada: Person, replies: int) -> None:
    with pytest.raises(Refused, match="use 1 to 9"):
        turns.send(ada, "Hello.", replies=replies)
    assert conversations.list_for(db, ada.id) == []


def test_another_persons_conversation_is_refused(turns: Turns, db: Database, ada: Person) -> None:
    live, eve = done(turns.send(ada, "Mine.", replies=1)), somebody(db, "eve")
    attempts: list[Callable[[], object]] = [
        lambda: turns.send(eve, "Yours?", conversation_id=live.conversation_id),
        lambda: turns.send(eve, "Yours?", parent_id=live.turn_id),
        lambda: turns.regenerate(eve, live.turn_id),
        lambda: turns.stop(eve, live.turn_id),
    ]
    for attempt in attempts:
        with pytest.raises(Refused, match="another"):
            attempt()
    assert len(messages.list_for(db, live.conversation_id)) == 2
    assert conversations.list_for(db, eve.id) == []


def test_a_conversation_that_is_gone_is_refused(turns: Turns, ada: Person) -> None:
    with pytest.raises(NotFound, match="does not exist or was deleted"):
        turns.send(ada, "Hello.", conversation_id="gone")


@pytest.mark.usefixtures("slowly")
def test_a_reply_that_is_being_written_cannot_be_answered(turns: Turns, db: Database, ada: Person) -> None:
    live = turns.send(ada, "Hello.", replies=1, sampling=LONG)
    chat, parent = live.conversation_id, live.replies[0].message_id
    with pytest.raises(Refused, match="still being written - wait for it, or stop it"):
        turns.send(ada, "And?", conversation_id=chat, parent_id=parent)


def test_a_lone_surrogate_is_answered_like_any_text(turns: Turns, db: Database, ada: Person) -> None:
    live = done(turns.send(ada, "a\ud800b", replies=1))
    assert messages.get(db, live.turn_id).content == "a\ufffdb"


def test_the_same_key_is_one_turn(turns: Turns, db: Database, ada: Person) -> None:
    first, second = (turns.send(ada, "Hello.", replies=2, request_key="k") for _ in range(2))
    assert first is second
    assert len(conversations.list_for(db, ada.id)) == 1
    assert len(messages.replies(db, first.turn_id)) == 2


def test_many_clicks_at_once_are_one_turn(turns: Turns, db: Database, ada: Person) -> None:
    lives: list[LiveTurn] = []
    start = threading.Barrier(6)

    def click() -> None:
        start.wait()
        lives.append(turns.send(ada, "Hello.", replies=2, request_key="k"))

    clicks = [threading.Thread(target=click) for _ in range(6)]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join()
    [chat] = conversations.list_for(db, ada.id)
    assert len(set(map(id, lives))) == 1 and len(lives) == 6
    assert len(messages.list_for(db, chat.id)) == 3


def test_a_turn_that_takes_long_to_begin_holds_up_no_other(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, is_beginning, may_go_on = turns.engine.accept, threading.Event(), threading.Event()

    def slow_accept(asked: Asked) -> Generation:
        if asked.person == ada.id:
            is_beginning.set()
            assert may_go_on.wait(60)
        return accept(asked)

    monkeypatch.setattr(turns.engine, "accept", slow_accept)
    with ThreadPoolExecutor(2) as people:
        slow = people.submit(turns.send, ada, "Hello.", replies=1)
        try:
            assert is_beginning.wait(60)
            quick = people.submit(turns.send, somebody(db, "eve"), "Hello.", replies=1)
            assert done(quick.result(20)).is_done and not slow.done()
        finally:
            may_go_on.set()
    assert done(slow.result()).is_done


def test_a_key_whose_turn_was_answered_long_ago_begins_nothing(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "_KEEP_ENDED_SECONDS", 0)
    live = done(turns.send(ada, "Hello.", replies=2, request_key="k"))
    until(lambda: turns.live(live.turn_id) is None)
    with pytest.raises(Refused, match="answered already - reload the page"):
        turns.send(ada, "Hello.", replies=2, request_key="k")
    assert len(messages.list_for(db, live.conversation_id)) == 3


def test_a_key_is_its_authors_own(turns: Turns, db: Database, ada: Person) -> None:
    people = (ada, somebody(db, "bob"))
    first, second = (turns.send(person, "Hello.", replies=1, request_key="k") for person in people)
    assert first.turn_id != second.turn_id


def test_regenerating_adds_siblings(turns: Turns, db: Database, ada: Person) -> None:
    first = done(turns.send(ada, "Hello.", replies=2))
    second = done(turns.regenerate(ada, first.turn_id, replies=3))
    everything = [row.id for row in messages.replies(db, first.turn_id)]
    assert len(everything) == 5 and turns.live(first.turn_id) is second
    assert {reply.message_id for reply in second.replies} == set(everything[2:])


@pytest.mark.usefixtures("slowly")
def test_a_turn_that_is_being_answered_is_not_regenerated(turns: Turns, db: Database, ada: Person) -> None:
    live = turns.send(ada, "Hello.", replies=1, sampling=LONG)
    with pytest.raises(Refused, match="still being answered - stop it first"):
        turns.regenerate(ada, live.turn_id)
    assert len(messages.replies(db, live.turn_id)) == 1


def test_only_a_persons_message_is_regenerated(turns: Turns, ada: Person) -> None:
    live = done(turns.send(ada, "Hello.", replies=1))
    with pytest.raises(Refused, match="Only a person's message can be answered"):
        turns.regenerate(ada, live.replies[0].message_id)


@pytest.mark.usefixtures("slowly")
def test_a_stopped_reply_keeps_what_was_written(turns: Turns, db: Database, ada: Person) -> None:
    live = turns.send(ada, "Hello.", replies=2, sampling=LONG)
    one, other = live.replies
    until(lambda: one.tokens > 3)
    turns.stop(ada, live.turn_id, one.message_id)
    until(lambda: messages.get(db, one.message_id).is_finished)
    row = messages.get(db, one.message_id)
    assert (row.finish_reason, row.content, row.tokens) == ("cancelled", one.text, one.tokens)
    assert row.content and other.finish_reason is None
    turns.stop(ada, live.turn_id)
    assert [row.finish_reason for row in stored(db, done(live))] == ["cancelled"] * 2


def test_stopping_what_has_ended_is_harmless(turns: Turns, db: Database, ada: Person) -> None:
    live = done(turns.send(ada, "Hello.", replies=2))
    before = stored(db, live)
    turns.stop(ada, live.turn_id)
    turns.stop(ada, live.turn_id, live.replies[0].message_id)
    assert stored(db, live) == before


@pytest.mark.usefixtures("slowly")
def test_closing_stores_what_was_written_as_interrupted(turns: Turns, db: Database, ada: Person) -> None:
    live = turns.send(ada, "Hello.", replies=2, sampling=LONG)
    until(lambda: live.replies[0].tokens > 3)
    turns.engine.close()
    turns.close()
    assert live.is_done
    assert [(row.finish_reason, bool(row.content)) for row in stored(db, live)] == [("interrupted", True)] * 2


def test_a_turn_that_is_stuck_is_ended_and_what_was_written_is_stored(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps, may_end = LlamaRunner.step, iter(range(5)), threading.Event()

    def stuck(self: LlamaRunner, beside: int) -> None:
        if next(steps, None) is None:
            assert may_end.wait(60)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", stuck)
    live = turns.send(ada, "Hello.", replies=2, sampling=LONG)
    until(lambda: all(reply.tokens for reply in live.replies))
    monkeypatch.setattr(live._generation, "_deadline", 0.1)
    done(live)
    may_end.set()
    for row, reply in zip(stored(db, live), live.replies, strict=True):
        assert (row.finish_reason, row.content, row.tokens) == (
            "interrupted",
            clean(reply.text),
            reply.tokens,
        )
        assert 0 < reply.tokens < LONG.max_new_tokens


def test_a_turn_that_is_written_slowly_may_take_longer_than_the_deadline(
    turns: Turns, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, clock = LlamaRunner.step, SimpleNamespace(now=0.0)

    def step_of_a_second(self: LlamaRunner, beside: int) -> None:
        clock.now += 1.0
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", step_of_a_second)
    monkeypatch.setattr(generation_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(turns_module, "DEADLINE", 10)
    sampling = Sampling(temperature=0, max_new_tokens=50)
    live = done(turns.send(ada, "Hello.", replies=1, sampling=sampling))
    assert clock.now > 20 and live.replies[0].finish_reason in ("stop", "length")


def test_a_turn_behind_a_step_that_hangs_ends_all_the_same_and_can_be_asked_again(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, may_step = LlamaRunner.step, threading.Event()

    def hanging_step(self: LlamaRunner, beside: int) -> None:
        assert may_step.wait(60)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", hanging_step)
    with monkeypatch.context() as soon:
        soon.setattr(turns_module, "DEADLINE", 0.1)
        live = done(turns.send(ada, "Hello.", replies=2))
    assert [(row.finish_reason, row.content) for row in stored(db, live)] == [("interrupted", "")] * 2
    board = board_view(db, turns, ada, live.turn_id)
    assert board["replies"] == []  # the page says so in a sentence, and offers to regenerate
    may_step.set()
    (row,) = stored(db, done(turns.regenerate(ada, live.turn_id, 1)))
    assert row.finish_reason in ("stop", "length")


def test_simulated_raters_have_time_and_no_person_in_the_queue(turns: Turns, db: Database) -> None:
    for kind, expected in (("human", 600), ("simulated", 3600)):
        asked = turns._asked(people.add(db, kind, kind=kind), [{"role": "user", "content": "Hello."}], 1)
        assert (asked.deadline, asked.person is None) == (expected, kind == "simulated")


@pytest.mark.usefixtures("slowly")
def test_deleting_a_conversation_ends_its_turn_quietly(
    turns: Turns, db: Database, ada: Person, caplog: pytest.LogCaptureFixture
) -> None:
    live = turns.send(ada, "Hello.", replies=2, sampling=LONG)
    conversations.delete(db, live.conversation_id)
    live.stop()
    assert done(live).is_done and not caplog.records


@pytest.mark.usefixtures("slowly")
def test_what_is_written_while_the_database_is_locked_is_stored_afterwards(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns_module, "_STORE_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("data.database.BUSY_SECONDS", 0.1)
    live = turns.send(ada, "Hello.", replies=3, sampling=LONG)
    one, *others = live.replies
    until(lambda: all(reply.tokens > 3 for reply in live.replies))
    other = Database(db.path)
    with other.write():
        one.stream.stop()
        until(lambda: "tried again until they can be stored: Another process" in caplog.text)
        assert [row.is_finished for row in stored(db, live)] == [False] * 3 and not live.is_done
        assert [reply.finish_reason for reply in others] == [None] * 2
    other.close()
    until(lambda: messages.get(db, one.message_id).is_finished)
    live.stop()
    done(live)
    for row, reply in zip(stored(db, live), live.replies, strict=True):
        assert (row.content, row.tokens, row.finish_reason) == (clean(reply.text), reply.tokens, "cancelled")
    assert len(caplog.records) == 1


def test_a_database_that_never_takes_a_reply_does_not_keep_the_server_from_closing(
    turns: Turns, ada: Person, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise Problem("The disk is full - make room.")

    monkeypatch.setattr(conversations, "finish_reply", refuse)
    live = turns.send(ada, "Hello.", replies=2)
    until(lambda: "tried again" in caplog.text)
    turns.close(timeout=0)
    assert done(live).is_done and "could not be stored" in caplog.text


def test_a_fault_of_ours_in_storing_is_logged_and_keeps_nobody_waiting(
    turns: Turns, db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(conversations, "finish_reply", fail)
    assert done(turns.send(ada, "Hello.", replies=2)).is_done
    assert "could not be stored" in caplog.text


def test_what_the_database_refuses_is_not_generated(
    turns: Turns, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise Problem("The disk is full - make room.")

    monkeypatch.setattr(conversations, "start_replies", refuse)
    with pytest.raises(Problem, match="disk is full"):
        turns.send(ada, "Hello.", sampling=LONG)
    until(lambda: turns.engine.load_now == (0, 0))
