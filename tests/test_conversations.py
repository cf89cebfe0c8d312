"""conversations.py and messages.py: a tree in which alternatives are siblings and nothing is overwritten."""

import json
from itertools import count

import pytest

from data import conversations, messages, people, rankings
from data.database import Database
from data.errors import NotFound, Refused
from data.records import Sampling
from tests.stories import a_turn, rank, somebody


def ask(db: Database, text: str, **options: str) -> str:
    person = somebody(db)
    chat = conversations.create(db, person.id)
    return conversations.add_user_message(db, chat.id, None, text, person.id, **options).id


def test_a_new_chat_is_titled_by_its_first_message(db: Database) -> None:
    first = messages.get(db, ask(db, "  What is\n\n a ranking?  "))
    chat = conversations.get(db, first.conversation_id)
    assert chat.title == "What is a ranking?"
    conversations.add_user_message(db, chat.id, first.id, "And a tie?", chat.person_id)
    assert conversations.get(db, chat.id).title == "What is a ranking?"


def test_a_long_first_message_gives_a_short_title(db: Database) -> None:
    chat = conversations.get(db, messages.get(db, ask(db, "x" * 1_000_000)).conversation_id)
    assert chat.title == "x" * 59 + "…"


def test_another_persons_conversation_is_refused_and_a_deleted_one_not_found(db: Database) -> None:
    chat = conversations.create(db, somebody(db).id)
    assert conversations.get(db, chat.id, chat.person_id) == chat
    with pytest.raises(Refused, match="another person's"):
        conversations.get(db, chat.id, somebody(db, "eve").id)
    conversations.delete(db, chat.id)
    with pytest.raises(NotFound, match="deleted"):
        conversations.get(db, chat.id)


def files_that_hold(db: Database, words: bytes) -> list[str]:
    """The database's own files in which these bytes stand."""
    return [path.name for path in db.path.parent.glob(f"{db.path.name}*") if words in path.read_bytes()]


def test_what_a_deleted_chat_said_is_in_none_of_the_files(db: Database) -> None:
    chats = [messages.get(db, ask(db, f"Canary {at}. " * 500)).conversation_id for at in range(3)]
    assert files_that_hold(db, b"Canary 0.") == ["nightschool.db-wal"]
    conversations.delete(db, chats[0])
    assert files_that_hold(db, b"Canary 0.") == [] != files_that_hold(db, b"Canary 1.")
    with db.read():
        assert db.query("SELECT 1 FROM conversations")
        conversations.delete(db, chats[1])
    with pytest.raises(NotFound):
        conversations.get(db, chats[1])
    conversations.delete(db, chats[2])
    assert files_that_hold(db, b"Canary") == []


def test_the_list_has_the_latest_used_first_and_only_ones_own(db: Database) -> None:
    ada = somebody(db)
    first = conversations.create(db, ada.id, "first")
    second = conversations.create(db, ada.id, "second")
    conversations.create(db, somebody(db, "eve").id, "hers")
    conversations.add_user_message(db, first.id, None, "again", ada.id)
    assert [chat.title for chat in conversations.list_for(db, ada.id)] == ["first", "second"]
    assert conversations.list_for(db, ada.id, limit=1)[0].id == first.id
    assert second.updated_at == conversations.get(db, second.id).updated_at


@pytest.mark.parametrize(("words", "found"), [("100%", 1), ("%", 1), ("_", 0), ("TITLE", 2), ("nothing", 0)])
def test_search_looks_into_titles_and_texts_and_takes_signs_as_signs(
    db: Database, words: str, found: int
) -> None:
    ada = somebody(db)
    for text in ("100% sure", "not sure"):
        chat = conversations.create(db, ada.id, "a title")
        conversations.add_user_message(db, chat.id, None, text, ada.id)
    assert len(conversations.list_for(db, ada.id, words)) == found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("leonardo SKY", 1),
        ("sky paints", 1),
        ("art blue leonardo", 1),
        ("leonardo green", 0),
        ('"sky leonardo"', 0),
        ('"is the SKY" leonardo', 1),
        ("“the sky", 1),
        ("“the leonardo”", 0),
        ('" "', 1),
    ],
)
def test_search_takes_every_word_from_anywhere_in_a_chat_and_quotes_as_one(
    db: Database, words: str, found: int
) -> None:
    ada = somebody(db)
    chat = conversations.create(db, ada.id, "Art")
    for text in ("Why is the sky blue?", "What did Leonardo paint, who paints?"):
        conversations.add_user_message(db, chat.id, None, text, ada.id)
    assert len(conversations.list_for(db, ada.id, words)) == found


@pytest.mark.parametrize("words", ["äpfel", "ÄPFEL", "a\u0308pfel", "STRASSE", "привет"])
def test_search_finds_words_in_whichever_case_and_form_they_were_typed(db: Database, words: str) -> None:
    ask(db, "Äpfel in der Straße, ПРИВЕТ")
    assert len(conversations.list_for(db, people.list_all(db)[0].id, words)) == 1


def test_a_conversation_can_be_renamed_and_kept_from_training(db: Database) -> None:
    chat = conversations.create(db, somebody(db).id)
    assert conversations.rename(db, chat.id, " Better\ntitle ").title == "Better title"
    assert not conversations.set_may_train(db, chat.id, False).may_train
    with pytest.raises(Refused, match="title is empty"):
        conversations.rename(db, chat.id, " ")


def test_the_same_request_twice_is_one_message(db: Database) -> None:
    first = ask(db, "hello", request_key="k")
    assert ask(db, "hello", request_key="k") == first
    assert ask(db, "hello", request_key="other") != first
    found = messages.by_request_key(db, somebody(db).id, "k")
    assert found is not None
    assert found.id == first
    assert messages.by_request_key(db, somebody(db, "eve").id, "k") is None


def test_replies_begin_unfinished_and_carry_what_made_them(db: Database) -> None:
    turn = ask(db, "hello")
    sampling = Sampling(temperature=0.5, max_new_tokens=7)
    first, second = conversations.start_replies(db, turn, "v000001", sampling, [3, 2**63 - 1])
    assert (first.version, second.version) == ("v000001", "v000001")
    assert (first.seed, second.seed) == (3, 2**63 - 1)
    assert first.sampling == sampling
    assert not first.is_finished
    assert messages.replies(db, turn) == [first, second]


def test_replies_that_were_asked_for_together_begin_together(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, clock = ask(db, "hello"), count(1e9)
    monkeypatch.setattr("time.time", lambda: next(clock))  # as where the machine stalls between two of them
    replies = conversations.start_replies(db, turn, "base", Sampling(), [1, 2, 3])
    assert len({reply.created_at for reply in replies}) == 1


def test_a_reply_is_finished_once(db: Database) -> None:
    (reply,) = conversations.start_replies(db, ask(db, "hello"), "base", Sampling(), [1])
    done = conversations.finish_reply(db, reply.id, "hi\0", 2, "length")
    assert (done.content, done.tokens, done.finish_reason) == ("hi\ufffd", 2, "length")
    assert conversations.finish_reply(db, reply.id, "something else", 9, "stop") == done


def test_finishing_a_reply_of_a_deleted_conversation_is_not_found(db: Database) -> None:
    (reply,) = conversations.start_replies(db, ask(db, "hello"), "base", Sampling(), [1])
    conversations.delete(db, reply.conversation_id)
    with pytest.raises(NotFound):
        conversations.finish_reply(db, reply.id, "hi", 2, "stop")


def test_what_a_stopped_server_left_is_marked_interrupted(db: Database) -> None:
    replies = conversations.start_replies(db, ask(db, "hello"), "base", Sampling(), [1, 2])
    conversations.finish_reply(db, replies[0].id, "hi", 2, "stop")
    assert conversations.interrupt_unfinished(db) == 1
    reasons = [messages.get(db, reply.id).finish_reason for reply in replies]
    assert reasons == ["stop", "interrupted"]


def test_a_reply_given_up_too_early_is_finished_by_what_still_writes_it(db: Database) -> None:
    (reply,) = conversations.start_replies(db, ask(db, "hello"), "base", Sampling(), [1])
    conversations.interrupt_unfinished(db)
    done = conversations.finish_reply(db, reply.id, "hi", 2, "stop")
    assert (done.content, done.tokens, done.finish_reason) == ("hi", 2, "stop")


def test_a_reply_that_its_own_writer_left_empty_stays_so(db: Database) -> None:
    (reply,) = conversations.start_replies(db, ask(db, "hello"), "base", Sampling(), [1])
    done = conversations.finish_reply(db, reply.id, "", 0, "interrupted")
    assert conversations.finish_reply(db, reply.id, "hi", 2, "stop") == done


def test_an_edit_is_a_finished_sibling_by_its_author(db: Database) -> None:
    replies = a_turn(db, somebody(db))
    edit = conversations.add_edit(db, replies[1].id, "better", somebody(db, "eve").id)
    assert (edit.parent_id, edit.replaces_id) == (replies[1].parent_id, replies[1].id)
    assert (edit.author_id, edit.finish_reason, edit.version) == (somebody(db, "eve").id, "stop", None)
    assert messages.replies(db, str(edit.parent_id))[-1] == edit
    assert messages.get(db, replies[1].id).content == "two"


def test_an_edit_that_says_nothing_new_is_refused(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    with pytest.raises(Refused, match="word for word"):
        conversations.add_edit(db, replies[1].id, " one ", ada.id)
    with pytest.raises(Refused, match="is empty"):
        conversations.add_edit(db, replies[1].id, " \n", ada.id)
    with pytest.raises(Refused, match="Only a finished reply"):
        conversations.add_edit(db, str(replies[1].parent_id), "x", ada.id)


def test_a_corrected_rewording_can_be_taken_back(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    reply = a_turn(db, ada)[0]
    said = ("Two hours.", "Three hours.", "Two hours.")
    edits = [conversations.add_edit(db, reply.id, text, ada.id) for text in said]
    assert len({edit.id for edit in edits}) == 3 and edits[-1].content == "Two hours."
    assert conversations.add_edit(db, reply.id, "Two hours. ", ada.id) == edits[-1], "a Save, repeated"
    hers = conversations.add_edit(db, reply.id, "Two hours.", eve.id)
    assert (hers.author_id, hers.id != edits[-1].id) == (eve.id, True)
    with pytest.raises(Refused, match="word for word"):
        conversations.add_edit(db, hers.id, "Two hours.", ada.id)


def test_a_path_leads_from_the_system_message_down_one_branch(db: Database) -> None:
    ada = somebody(db)
    chat = conversations.create(db, ada.id)
    system = conversations.add_system_message(db, chat.id, "Be brief.")
    turn = conversations.add_user_message(db, chat.id, system.id, "Hello", ada.id)
    first, second = conversations.start_replies(db, turn.id, "base", Sampling(), [1, 2])
    leaf = conversations.add_user_message(db, chat.id, second.id, "Go on", ada.id)
    assert [entry.id for entry in messages.path_to(db, leaf.id)] == [
        system.id,
        turn.id,
        second.id,
        leaf.id,
    ]
    assert messages.latest_turn(db, chat.id) == leaf
    assert messages.list_for(db, chat.id) == [system, turn, first, second, leaf]


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_the_end_of_a_path_is_the_system_message_and_the_newest_that_have_room(
    db: Database, system: str
) -> None:
    ada = somebody(db)
    chat = conversations.create(db, ada.id)
    said = [{"role": role, "content": f"{n}{role}"} for n in range(5) for role in ("user", "assistant")][:-1]
    head = [{"role": "system", "content": system}] if system else []
    end = conversations.add_history(db, chat, [*head, *said])
    assert end is not None and messages.prompt_of(db, end) == (*head, *said)
    two = sum(len(entry["content"]) + messages.AROUND for entry in said[-3:])
    for characters, kept in ((two, 3), (two + 99, 3), (two - 1, 1), (0, 1)):  # never a reply without its turn
        assert messages.end_of(db, end, characters) == ((*head, *said[-kept:]), False)
    assert messages.end_of(db, end, 10_000) == ((*head, *said), True)
    with pytest.raises(NotFound):
        messages.end_of(db, "nothing", 10)


def test_a_history_is_one_branch_whose_replies_nobody_here_wrote(db: Database) -> None:
    ada = somebody(db)
    chat = conversations.create(db, ada.id)
    assert conversations.add_history(db, chat, []) is None
    said = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Go on")]
    end = conversations.add_history(db, chat, [{"role": role, "content": text} for role, text in said])
    assert end is not None
    path = messages.path_to(db, end)
    assert [(entry.role, entry.content) for entry in path] == said
    assert [entry.author_id for entry in path] == [None, ada.id, None, ada.id]
    assert all(entry.is_finished and entry.version is None for entry in path)


def test_a_turn_cannot_hang_in_another_conversation_nor_a_reply_under_a_reply(db: Database) -> None:
    ada = somebody(db)
    reply = a_turn(db, ada)[0]
    with pytest.raises(Refused, match="another conversation"):
        conversations.add_user_message(db, conversations.create(db, ada.id).id, reply.id, "hello", ada.id)
    with pytest.raises(Refused, match="Only a user's message"):
        conversations.start_replies(db, reply.id, "base", Sampling(), [1])
    with pytest.raises(Refused, match="has begun"):
        conversations.add_system_message(db, reply.conversation_id, "late")


def test_an_empty_conversation_has_no_latest_turn(db: Database) -> None:
    assert messages.latest_turn(db, conversations.create(db, somebody(db).id).id) is None


def test_a_late_reply_to_an_early_turn_is_not_where_the_conversation_was_left(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    later = conversations.add_user_message(db, replies[0].conversation_id, replies[0].id, "Go on.", ada.id)
    conversations.add_edit(db, replies[1].id, "Better.", ada.id)
    assert messages.latest_turn(db, later.conversation_id) == later


def test_branches_are_the_turns_that_follow_the_same_turn(db: Database) -> None:
    ada = somebody(db)
    first, second, _ = a_turn(db, ada)
    chat_id, turn_id = first.conversation_id, str(first.parent_id)
    under = [
        conversations.add_user_message(db, chat_id, reply.id, "Go on.", ada.id).id
        for reply in (first, second, first)
    ]
    other = conversations.add_user_message(db, chat_id, None, "Other words.", ada.id)
    roots = [turn_id, other.id]
    assert messages.branches(db, chat_id) == dict.fromkeys(roots, roots) | dict.fromkeys(under, under)
    assert messages.latest_turn_from(db, turn_id).id == under[-1]
    assert messages.latest_turn_from(db, other.id) == other


def test_deleting_a_conversation_removes_its_messages_and_rankings(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada)
    rank(db, ada, replies, [1, 2, 3])
    conversations.delete(db, replies[0].conversation_id)
    left = [
        db.query(f"SELECT count(*) FROM {table}")[0][0] for table in ("messages", "rankings", "placements")
    ]
    assert left == [0, 0, 0]
    assert rankings.count(db) == 0


def test_a_long_conversation_has_a_long_path(db: Database) -> None:
    ada = somebody(db)
    chat = conversations.create(db, ada.id)
    leaf = None
    with db.write():
        for number in range(2000):
            leaf = conversations.add_user_message(db, chat.id, leaf, f"{number}", ada.id).id
    assert len(messages.path_to(db, str(leaf))) == 2000
    conversations.delete(db, chat.id)  # SQLite's cascades go no deeper than 1,000
    assert db.query("SELECT count(*) FROM messages")[0][0] == 0


def test_an_export_holds_messages_and_rankings_and_is_json(db: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada, question="Why?")
    rank(db, ada, replies, [2, 1, 1])
    out = json.loads(json.dumps(conversations.export(db, replies[0].conversation_id)))
    assert [entry["content"] for entry in out["messages"]] == ["Why?", "one", "two", "three"]
    assert out["messages"][1]["sampling"]["temperature"] == 0.8
    assert [place["place"] for place in out["rankings"][0]["placements"]] == [2, 1, 1]
    assert out["rankings"][0]["reasons"] == []
