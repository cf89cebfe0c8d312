"""asked.py: what people let us learn from, and the share of it that only judges."""

import pytest

from data import asked, conversations, people
from data.database import Database
from data.records import Prompt
from tests.stories import a_long_chat, a_turn, somebody


def words(prompts: list[Prompt]) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts]


def everything(db: Database, limit: int = 10) -> list[Prompt]:
    return [prompt for share in (False, True) for prompt in asked.user_prompts(db, limit, for_judging=share)]


def test_user_prompts_are_what_people_let_us_learn_from_once_each(db: Database) -> None:
    ada, machine = somebody(db), people.add(db, "machine", kind="simulated")
    chat = conversations.create(db, ada.id)
    for question in ("old", "twice", "twice"):
        conversations.add_user_message(db, chat.id, None, question, ada.id)
    a_turn(db, ada, question="private", may_train=False)
    a_turn(db, machine, question="simulated")
    prompts = everything(db)
    assert words(prompts) == ["twice", "old"]
    assert prompts[0].turn_id is not None
    assert words(everything(db, limit=1)) == ["twice"]
    people.set_disabled(db, ada.id, True)
    assert everything(db) == []


def test_one_conversation_in_five_is_kept_for_judging_whole(db: Database) -> None:
    ada = somebody(db)
    for number in range(200):
        reply = a_turn(db, ada, ["one"], question=str(number))[0]
        conversations.add_user_message(db, reply.conversation_id, reply.id, f"{number}, again", ada.id)
    practised, kept = (set(words(asked.user_prompts(db, 400, for_judging=share))) for share in (False, True))
    assert len(practised) + len(kept) == len(practised | kept) == 400
    assert 20 <= len(kept) <= 150  # 80, give or take six times what chance gives
    for share in (practised, kept):
        assert {f"{word}, again" for word in share if word.isdigit()} <= share


@pytest.mark.parametrize("for_judging", [False, True])
def test_one_person_s_many_chats_leave_everybody_else_their_prompts(
    db: Database, monkeypatch: pytest.MonkeyPatch, for_judging: bool
) -> None:
    monkeypatch.setattr(asked, "_is_kept_for_judging", lambda _: for_judging)
    for name in ("ada", "bob", "ada", "bob", "ada"):
        a_turn(db, somebody(db, name), question=f"{name} asks {len(everything(db))}")
    for number in range(20):
        a_turn(db, somebody(db, "mallory"), question=f"Buy {number}!")
    prompts = words(asked.user_prompts(db, 8, for_judging=for_judging))
    assert prompts == [
        *("Buy 19!", "ada asks 4", "bob asks 3"),
        *("Buy 18!", "ada asks 2", "bob asks 1"),
        *("Buy 17!", "ada asks 0"),
    ]


def test_what_is_far_too_long_takes_nobody_s_place(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_is_kept_for_judging", lambda _: False)
    a_turn(db, somebody(db), question="Short?")
    a_long_chat(db, somebody(db), turns=9, length=5_000)
    prompts = asked.user_prompts(db, 3, for_judging=False)
    assert [len(prompt.messages) for prompt in prompts] == [3, 1, 1]


def test_what_was_asked_the_same_way_for_ever_is_not_all_read(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, end_of = list[str](), asked.end_of
    monkeypatch.setattr(asked, "end_of", lambda db, id, most: read.append(id) or end_of(db, id, most))
    monkeypatch.setattr(asked, "_is_kept_for_judging", lambda _: False)
    monkeypatch.setattr(asked, "_LOOKED_AT", 3)
    for _ in range(9):
        a_turn(db, somebody(db), question="Is it up?")
    assert words(asked.user_prompts(db, 2, for_judging=False)) == ["Is it up?"] and len(read) == 6


def test_what_is_deleted_while_prompts_are_read_is_left_out(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = somebody(db)
    replies = [a_turn(db, ada, question=str(number))[0] for number in range(9)]
    chats = {str(reply.parent_id): reply.conversation_id for reply in replies}
    monkeypatch.setattr(asked, "_is_kept_for_judging", lambda _: False)
    [newest, *_] = asked.user_prompts(db, 1, for_judging=False)
    read = asked.end_of

    def read_after_a_deletion(db: Database, id: str, most: int) -> tuple[tuple[dict[str, str], ...], bool]:
        if id != newest.turn_id:
            conversations.delete(db, chats[id])
        return read(db, id, most)

    monkeypatch.setattr(asked, "end_of", read_after_a_deletion)
    assert asked.user_prompts(db, 9, for_judging=False) == [newest]


def test_a_turn_that_was_taken_back_may_teach_no_longer(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    left, shut, gone = (a_turn(db, ada)[0] for _ in range(3))
    hers = a_turn(db, eve)[0]
    turns = [str(reply.parent_id) for reply in (left, shut, gone, hers)]
    assert asked.still_teaching(db, turns) == set(turns)
    conversations.set_may_train(db, shut.conversation_id, False)
    conversations.delete(db, gone.conversation_id)
    people.set_disabled(db, eve.id, True)
    assert asked.still_teaching(db, turns) == {left.parent_id}
    assert asked.still_teaching(db, []) == set()
