"""demonstrations.py: what people wrote, edited and imported can be imitated; what may not teach cannot."""

import json
from typing import Any

import pytest

from data import conversations, lessons, people, runs, versions
from data.database import Database
from data.demonstrations import collect, stream, write_file
from data.exchange import export_rows, import_rows
from data.forgetting import forget
from data.home import Home
from data.messages import DEMONSTRATED
from data.snapshots import taught_turns
from tests.stories import a_long_chat, a_turn, rank, somebody


def sft_row(question: str, reply: str) -> dict[str, Any]:
    """A row as other trainers write it."""
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}],
    }


def test_imported_sft_rows_are_collected_with_all_that_stood_before_the_reply(db: Database) -> None:
    opening = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "How are you?"},
    ]
    rows = [
        sft_row("Name a colour.", "Blue."),
        {"messages": [*opening, {"role": "assistant", "content": "Well."}]},
    ]
    assert import_rows(db, rows, "sft").added == 2
    first, second = collect(db)
    assert (first.messages, first.reply) == (({"role": "user", "content": "Name a colour."},), "Blue.")
    assert (list(second.messages), second.reply) == (opening, "Well.")
    assert {first.source, second.source} == {"imported"}
    assert first.conversation_id != second.conversation_id


def test_an_import_under_a_persons_name_is_still_an_import(db: Database) -> None:
    """As such an import once was let in."""
    import_rows(db, [sft_row("Hi", "Hello.")], "sft", person_name="ada")
    with db.write() as conn:
        conn.execute("UPDATE people SET kind = 'human'")
    assert [demonstration.source for demonstration in collect(db)] == ["imported"]


def test_what_corrects_an_edit_is_looked_for_among_edits_of_that_reply(db: Database) -> None:
    """Not among all that its author wrote: an import is one author's, and a night would take its square."""
    plan = db.query(f"EXPLAIN QUERY PLAN SELECT e.id FROM {DEMONSTRATED}")
    (step,) = [row["detail"] for row in plan if " later " in row["detail"]]
    assert "messages_replaces" in step


def test_an_edit_is_a_ranking_and_a_demonstration(db: Database) -> None:
    ada = somebody(db)
    reply = a_turn(db, ada, ["one"], question="Count.")[0]
    edit = conversations.add_edit(db, reply.id, "one, two", ada.id)
    (demonstration,) = collect(db)
    assert demonstration.message_id == edit.id
    assert (demonstration.messages[-1]["content"], demonstration.reply) == ("Count.", "one, two")
    assert (demonstration.source, demonstration.person_id) == ("human", ada.id)
    (turn,) = taught_turns(db)
    assert (turn.replies, turn.places) == (("one, two", "one"), (1, 2))


def test_an_edit_of_an_imported_reply_is_the_persons_own(db: Database) -> None:
    import_rows(db, [sft_row("Hi", "Hello.")], "sft")
    (imported,) = collect(db)
    ada = somebody(db)
    conversations.add_edit(db, imported.message_id, "Hello, you!", ada.id)
    assert [(entry.reply, entry.source) for entry in collect(db)] == [("Hello, you!", "human")]


def test_of_an_edited_edit_only_the_better_wording_is_left(db: Database) -> None:
    ada = somebody(db)
    first = conversations.add_edit(db, a_turn(db, ada, ["one"])[0].id, "two", ada.id)
    conversations.add_edit(db, first.id, "three", ada.id)
    assert [demonstration.reply for demonstration in collect(db)] == ["three"]


def test_a_corrected_rewording_is_the_only_one_that_teaches(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    reply = a_turn(db, ada, ["one"], question="Count.")[0]
    for person, text in ((ada, "Better wordng"), (eve, "Eve's own"), (ada, "Better wording")):
        conversations.add_edit(db, reply.id, text, person.id)
    wanted = ["Eve's own", "Better wording"]
    assert [demonstration.reply for demonstration in collect(db)] == wanted
    assert [turn.replies for turn in taught_turns(db)] == [(text, "one") for text in wanted]
    assert [row["messages"][-1]["content"] for row in export_rows(db, "sft")] == wanted
    assert [row["chosen"][0]["content"] for row in export_rows(db, "preference")] == wanted


def test_what_is_exported_is_what_is_learned_from(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    first = conversations.add_edit(db, a_turn(db, ada, ["one"])[0].id, "two", ada.id)
    conversations.add_edit(db, first.id, "three", eve.id)
    conversations.add_edit(db, a_turn(db, eve, ["one"])[0].id, "three", eve.id)
    assert [row["messages"][-1]["content"] for row in export_rows(db, "sft")] == ["three"]
    assert [demonstration.reply for demonstration in collect(db)] == ["three"]


def test_of_a_long_conversation_a_night_imitates_the_end_and_an_export_has_all(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.snapshots._LONGEST", 1_300)
    [*_, [last]] = a_long_chat(db, ada := somebody(db), turns=9, length=300)
    edit = conversations.add_edit(db, last.id, "two", ada.id)
    [demonstration], [row] = collect(db), list(export_rows(db, "sft"))
    assert (demonstration.message_id, len(demonstration.messages), len(row["messages"])) == (edit.id, 5, 18)
    assert demonstration.messages == tuple(row["messages"][-6:-1])


def test_what_is_deleted_between_two_rows_is_left_out(db: Database) -> None:
    import_rows(db, [sft_row(f"Question {number}", "Yes.") for number in range(3)], "sft")
    first, second, third = collect(db)
    found = stream(db)
    assert next(found) == first
    conversations.delete(db, second.conversation_id)
    assert list(found) == [third]


def test_they_come_oldest_first_and_the_same_words_once(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    for person, text in ((ada, "b"), (eve, "a"), (eve, "b")):
        reply = a_turn(db, person, ["one"], question="Same question.")[0]
        conversations.add_edit(db, reply.id, text, person.id)
    assert [(entry.reply, entry.person_id) for entry in collect(db)] == [("b", ada.id), ("a", eve.id)]


def test_what_a_version_wrote_and_imported_preferences_are_no_demonstrations(db: Database) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}
    assert import_rows(db, [row], "preference").added == 1
    assert collect(db) == []


def test_opted_out_chats_and_disabled_people_teach_nothing(db: Database) -> None:
    ada, eve = somebody(db), somebody(db, "eve")
    private = a_turn(db, ada, ["one"], may_train=False)[0]
    conversations.add_edit(db, private.id, "secret", ada.id)
    conversations.add_edit(db, a_turn(db, eve, ["one"])[0].id, "from eve", eve.id)
    people.set_disabled(db, eve.id, True)
    assert collect(db) == []
    conversations.set_may_train(db, private.conversation_id, True)
    assert [demonstration.reply for demonstration in collect(db)] == ["secret"]


def test_what_is_collected_is_what_is_exported(db: Database) -> None:
    import_rows(db, [sft_row("Hi", "Hello."), sft_row("Bye", "Goodbye.")], "sft")
    collected = [[*entry.messages, {"role": "assistant", "content": entry.reply}] for entry in collect(db)]
    assert collected == [row["messages"] for row in export_rows(db, "sft")]


@pytest.fixture
def learned(db: Database, home: Home) -> str:
    """A run that learned from an edit by ada, and made a version."""
    ada = somebody(db)
    conversations.add_edit(db, a_turn(db, ada, ["one"])[0].id, "two", ada.id)
    run = runs.claim(db, "sft-1", config={})
    assert run is not None
    folder = home.runs / run.id
    folder.mkdir()
    found = collect(db)
    sha256 = write_file(folder / "demonstrations.jsonl", found)
    lessons.set_taught(db, run.id, [(entry.message_id, entry.person_id) for entry in found], sha256)
    assert runs.get(db, run.id).snapshot_hash == sha256
    versions.add(
        db,
        name="v000001",
        parent="base",
        base_model="tiny",
        base_sha256="",
        path="v000001",
        sha256="",
        status="candidate",
        report={},
        run_id=run.id,
        rankings=0,
    )
    runs.finish(db, run, state="published", reason="")
    return run.id


def test_a_run_writes_down_what_it_imitated_and_saw_no_rankings(
    db: Database, home: Home, learned: str
) -> None:
    (row,) = map(json.loads, (home.runs / learned / "demonstrations.jsonl").read_text().splitlines())
    assert (row["message_id"], row["reply"]) == (collect(db)[0].message_id, "two")
    assert runs.learned_until(db) is None


def test_forgetting_a_person_names_the_version_that_imitated_them_and_deletes_the_file(
    db: Database, home: Home, learned: str
) -> None:
    forgotten = forget(db, home, somebody(db))
    assert forgotten.versions == ["v000001"]
    assert forgotten.snapshots == [str(home.runs / learned / "demonstrations.jsonl")]
    assert collect(db) == []
