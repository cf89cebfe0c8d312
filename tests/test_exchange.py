"""exchange.py and formats.py: what goes out comes back the same, and bad rows are named by line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data import asked, conversations, messages, people, rankings
from data.comparisons import weigh
from data.database import Database, open_database
from data.errors import NotFound, Refused
from data.exchange import export_rows, import_rows, read_rows
from data.home import open_home
from data.records import Placement
from data.snapshots import taught_turns
from tests.stories import a_turn, rank, somebody

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    """Another installation."""
    db = open_database(open_home(tmp_path / "other"))
    yield db
    db.close()


@pytest.fixture
def filled(db: Database) -> Database:
    """Every kind of ranking, an edit, a dialogue with a system message, and a chat that may not teach."""
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada, ["a", "b", "c"], question="full"), [2, 1, 2])
    rank(db, ada, a_turn(db, ada, ["d", "e", "f"], question="best"), [2, 1, 2], kind="best")
    rank(db, ada, a_turn(db, ada, ["g", "h"], question="bad"), [1, 1], kind="all_bad")
    rank(db, ada, a_turn(db, ada, ["secret", "x"], may_train=False), [1, 2])
    chat = conversations.create(db, ada.id)
    system = conversations.add_system_message(db, chat.id, "Be brief.")
    turn = conversations.add_user_message(db, chat.id, system.id, "为什么\n\n", ada.id)
    reply = conversations.add_written_reply(db, turn.id, "why not", None)
    last = conversations.add_user_message(db, chat.id, reply.id, "Go on", ada.id)
    written = [conversations.add_written_reply(db, last.id, text, None) for text in ("long", "short")]
    rank(db, ada, written, [2, 1])
    conversations.add_edit(db, written[0].id, "rewritten", ada.id)
    return db


def rows(db: Database, fmt: str) -> list[str]:
    """Exported rows as comparable text, without what only says where they came from."""
    kept = [
        {name: value for name, value in row.items() if name not in ("id", "source")}
        for row in export_rows(db, fmt)
    ]
    return sorted(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in kept)


@pytest.mark.parametrize(
    ("fmt", "number"), [("preference", 6), ("tiers", 5), ("normalised", 5), ("kto", 9), ("sft", 1)]
)
def test_a_round_trip_loses_nothing(filled: Database, other: Database, fmt: str, number: int) -> None:
    result = import_rows(other, export_rows(filled, fmt), fmt)
    # kto: what is only said to be good compares with nothing
    assert len(result.skipped) == (1 if fmt == "kto" else 0)
    expected = rows(filled, fmt)
    if fmt == "kto":
        expected = [row for row in expected if '"best"' not in row]
        number -= 1
    assert rows(other, fmt) == expected
    assert len(expected) == number
    assert "secret" not in str(expected)


def test_rows_of_one_dialogue_are_of_one_part_though_each_is_a_conversation(db: Database) -> None:
    rows = []
    for i in range(12):
        prompt = [{"role": "user", "content": f"What is {i} times a dozen, please?"}]
        for reply in ("many", "more"):  # branches of the same dialogue
            rows.append({"prompt": prompt, "chosen": f"{reply} than {i}", "rejected": "none"})
            prompt = [*prompt, {"role": "assistant", "content": reply}, {"role": "user", "content": "Sure?"}]
    assert import_rows(db, rows, "preference").added == 24
    turns = taught_turns(db)
    assert len({turn.conversation_id for turn in turns}) == 24 and len({turn.group for turn in turns}) == 12
    assert len({(turn.group, turn.part) for turn in turns}) == 12


def test_replies_that_say_the_same_are_no_pair_but_keep_their_tiers(db: Database, other: Database) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada, ["same", "same", "else"]), [1, 2, 3])
    assert len(list(export_rows(db, "preference"))) == 2
    assert import_rows(other, export_rows(db, "tiers"), "tiers").added == 1
    assert rows(other, "tiers") == rows(db, "tiers")


@pytest.mark.parametrize("fmt", ["tiers", "normalised", "kto"])
def test_a_ranking_with_a_reply_that_says_nothing_comes_back_whole(
    db: Database, other: Database, fmt: str
) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada, ["yes", "", "no"]), [1, 3, 2])
    assert import_rows(other, export_rows(db, fmt), fmt).skipped == []
    assert rows(other, fmt) == rows(db, fmt) and '""' in "".join(rows(other, fmt))
    assert [len(turn.replies) for turn in taught_turns(other)] == [2 if fmt == "kto" else 3]


@pytest.mark.parametrize("fmt", ["preference", "tiers", "normalised", "hh", "kto"])
def test_a_ranking_after_a_reply_that_said_nothing_comes_back(
    db: Database, other: Database, fmt: str
) -> None:
    ada = somebody(db)
    silent = a_turn(db, ada, [""])[0]
    turn = conversations.add_user_message(db, silent.conversation_id, silent.id, "Well?", ada.id)
    written = [conversations.add_written_reply(db, turn.id, text, None) for text in ("yes", "no")]
    rank(db, ada, written, [1, 2])
    result = import_rows(other, export_rows(db, fmt), fmt)
    assert (result.added, result.skipped) == (1, []) and rows(other, fmt) == rows(db, fmt)


def test_tiers_say_which_replies_were_cut_off(db: Database, other: Database) -> None:
    ada = somebody(db)
    replies = a_turn(db, ada, ["whole", "cut o"])
    with db.write() as conn:
        conn.execute("UPDATE messages SET finish_reason = 'length' WHERE id = ?", (replies[1].id,))
    rank(db, ada, replies, [1, 2])
    assert import_rows(other, export_rows(db, "tiers"), "tiers").added == 1
    assert [turn.cut for turn in taught_turns(other)] == [(False, True)]
    assert rows(other, "tiers") == rows(db, "tiers")


def test_kto_rows_that_contradict_each_other_are_named_by_their_lines(db: Database) -> None:
    said = [("a", True), ("b", False), ("a", False), ("b", False)]
    given = [{"prompt": "Why?", "completion": reply, "label": label} for reply, label in said]
    result = import_rows(db, given, "kto")
    assert result.added == 1
    assert result.skipped == ["Line 3 is left out: line 1 labels the same reply true."]


def test_a_prompt_with_a_crowd_of_labelled_replies_keeps_as_many_good_ones_as_bad_ones(db: Database) -> None:
    given = [{"prompt": "Why?", "completion": f"{n}", "label": n < 40} for n in range(80)]
    result = import_rows(db, given, "kto")
    assert result.added == 1
    assert result.skipped == [
        f"Line {line} is left out: 32 replies to its prompt are labelled {label} already."
        for lines, label in ((range(33, 41), "true"), (range(73, 81), "false"))
        for line in lines
    ]
    (turn,) = taught_turns(db)
    assert turn.places == (1,) * 32 + (2,) * 32


def test_hh_comes_back_but_for_space_at_the_ends(filled: Database, other: Database) -> None:
    assert import_rows(other, export_rows(filled, "hh"), "hh").skipped == []
    assert [row.replace("\\n\\n\\n\\nAss", "\\n\\nAss") for row in rows(filled, "hh")] == rows(other, "hh")
    assert any('"Be brief.\\n\\nHuman: 为什么' in row for row in rows(other, "hh"))


def test_preference_rows_are_what_trl_reads(filled: Database) -> None:
    first = next(export_rows(filled, "preference"))
    assert first == {
        "prompt": [{"role": "user", "content": "full"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "a"}],
    }


def test_tiers_name_the_kind_and_the_source(filled: Database) -> None:
    first = next(export_rows(filled, "tiers"))
    assert (first["completions"], first["tiers"]) == (["a", "b", "c"], [[1], [0, 2]])
    assert (first["kind"], first["source"]) == ("full", "human")


def test_tiers_say_why(db: Database, other: Database) -> None:
    ada = somebody(db)
    bad, _ = a_turn(db, ada, ["a", "b"])
    rankings.save(
        db,
        turn_id=str(bad.parent_id),
        person_id=ada.id,
        kind="all_bad",
        placements=[Placement(bad.id, 1, 0)],
        reasons=["wrong", "unsafe"],
        comment="它会伤人。",
    )
    conversations.add_edit(db, bad.id, "better", ada.id)
    row, edit = export_rows(db, "tiers")
    assert (row["reasons"], row["comment"]) == (["wrong", "unsafe"], "它会伤人。")
    assert (edit["reasons"], edit["comment"]) == ([], "")
    assert import_rows(other, [row, edit], "tiers").added == 2
    assert rows(other, "tiers") == rows(db, "tiers")
    assert all("comment" not in one for one in export_rows(db, "preference"))


@pytest.mark.parametrize("why", [{"reasons": "wrong"}, {"reasons": [1]}, {"comment": None}])
def test_reasons_that_are_no_texts_are_named(db: Database, why: dict[str, Any]) -> None:
    row = {"prompt": "Why?", "completions": ["a", "b"], "tiers": [[0], [1]]}
    [skipped] = import_rows(db, [row | why], "tiers").skipped
    assert skipped == "Line 1 is left out: the reasons are not a list of texts, or the comment is no text."


def test_a_row_that_was_imported_before_rows_said_why_is_not_imported_again(db: Database) -> None:
    row = {"prompt": "Why?", "completions": ["a", "b"], "tiers": [[0], [1]], "kind": "full"}
    assert import_rows(db, [row], "tiers").added == 1
    assert import_rows(db, [row | {"reasons": ["clear"], "comment": "Yes."}], "tiers").added == 0
    person = people.by_name(db, "imported")
    key = "import-8af83de1acdb6633b0888d12b5b4e9ced6f3296c0b1fa2e477138b808e87088b"
    assert person and messages.by_request_key(db, person.id, key)


def test_normalised_says_of_the_best_only_what_it_beats(filled: Database, other: Database) -> None:
    best = [row for row in export_rows(filled, "normalised") if row["prompt"][0]["content"] == "best"]
    assert [row["replies"] for row in best] == [["e", "d"], ["e", "f"]]
    assert len({row["id"] for row in best}) == 2
    assert import_rows(other, best, "normalised").added == 2
    assert [turn.pairs() for turn in taught_turns(other)] == [[(0, 1, 1.0)]] * 2


def test_an_imported_row_is_a_ranking_of_its_own_source_and_asks_nobody(db: Database) -> None:
    import_rows(db, [{"prompt": "Why?", "chosen": "so", "rejected": "no"}], "preference", "a file")
    (turn,) = taught_turns(db)
    assert (turn.source, turn.versions, weigh([turn])[0].weight) == ("imported", (None, None), 0.5)
    assert (turn.replies, turn.places) == (("so", "no"), (1, 2))
    person = people.by_name(db, "a file")
    assert person is not None
    assert person.kind == "simulated"
    assert asked.user_prompts(db, 10, for_judging=False) == []
    assert asked.user_prompts(db, 10, for_judging=True) == []


def test_the_same_file_twice_adds_nothing(filled: Database, other: Database) -> None:
    exported = list(export_rows(filled, "tiers"))
    assert import_rows(other, exported, "tiers").added == 5
    again = import_rows(other, exported, "tiers")
    assert again.added == 0
    assert again.skipped[0] == "Line 1 is left out: it is here already."


def test_dialogues_without_a_prompt_of_their_own_share_what_is_common(db: Database) -> None:
    asked = [{"role": "user", "content": "Why?"}]
    row = {
        name: [*asked, {"role": "assistant", "content": text}]
        for name, text in (("chosen", "so"), ("rejected", "no"))
    }
    assert import_rows(db, [row, row | {"prompt": "Why?"}], "preference").added == 1
    assert next(export_rows(db, "preference"))["prompt"] == asked


def test_one_speaker_twice_in_a_row_is_joined(db: Database) -> None:
    text = "\n\nHuman: One\n\nHuman: Two\n\nAssistant: "
    assert import_rows(db, [{"chosen": text + "a", "rejected": text + "b"}], "hh").added == 1
    assert taught_turns(db)[0].prompt == ({"role": "user", "content": "One\n\nTwo"},)


def pair(chosen: Any, rejected: Any, prompt: Any = "Why?") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


TURN = [{"role": "user", "content": "Why?"}]
HELLO = "\n\nHuman: Hi\n\nAssistant: "
LONG = "a" * 32_001
MANY = [str(number) for number in range(3_000)]

BAD: list[tuple[str, Any, str]] = [
    ("preference", pair("a", " "), "a reply is empty"),
    ("preference", pair("a", "a"), "the replies are identical"),
    ("preference", pair("a", None), "not a list"),
    ("preference", pair("a", "b", []), "not a list"),
    ("preference", pair("a", "b", " "), "empty message"),
    ("preference", {"chosen": "a", "rejected": "b"}, "no prompt before the replies"),
    ("preference", "text", "no JSON object"),
    ("preference", pair([{"role": "user", "content": "x"}], "b"), "does not end with a reply"),
    (
        "preference",
        pair("a", "b", [{"role": "assistant", "content": "Hi"}, *TURN]),
        "does not begin with a user",
    ),
    ("hh", {"chosen": HELLO + "a", "rejected": HELLO + "b\n\nHuman: c"}, "does not end with a reply"),
    (
        "hh",
        {"chosen": HELLO + "a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
        "part before the last reply",
    ),
    ("hh", {"chosen": 1, "rejected": 2}, "is no text"),
    ("tiers", {"prompt": TURN, "completions": ["a", "b"], "tiers": [[0]]}, "does not name each reply once"),
    ("tiers", {"prompt": TURN, "completions": ["a", "b"], "tiers": [[0], [0]]}, "is there twice"),
    ("tiers", {"prompt": TURN, "completions": ["a", "b"], "tiers": [[0], [{}]]}, "no reply's number"),
    ("tiers", {"prompt": TURN, "completions": ["a", 2], "tiers": [[0], [1]]}, "not a list of texts"),
    (
        "tiers",
        {"prompt": TURN, "completions": ["a", "b"], "tiers": [[0], [1]], "kind": "worst"},
        "no ranking of",
    ),
    (
        "tiers",
        {"prompt": TURN, "completions": ["a", "b"], "tiers": [[0, 1]], "kind": "best"},
        "One reply is best",
    ),
    ("tiers", {"prompt": TURN, "completions": [], "tiers": []}, "there are no replies"),
    ("normalised", {"prompt": TURN, "replies": [], "ranking": []}, "there are no replies"),
    (
        "tiers",
        {"prompt": TURN, "completions": MANY, "tiers": [[*range(3_000)]]},
        "3,000 replies, more than 64.",
    ),
    (
        "normalised",
        {"prompt": TURN, "replies": MANY, "ranking": []},
        "there are 3,000 replies, more than 64.",
    ),
    ("normalised", {"prompt": TURN, "replies": ["a", LONG], "ranking": [0, 1]}, "more than 32,000."),
    ("preference", pair("a", LONG), "a text has 32,001 characters, more than 32,000."),
    ("preference", pair("a", "b", LONG), "a text has 32,001 characters, more than 32,000."),
    ("hh", {"chosen": HELLO + LONG, "rejected": HELLO + "b"}, "more than 32,000."),
    ("sft", {"messages": [*TURN, {"role": "assistant", "content": LONG}]}, "more than 32,000."),
    ("kto", {"prompt": TURN, "completion": LONG, "label": False}, "more than 32,000."),
    ("normalised", {"prompt": TURN, "replies": ["", ""], "ranking": [0, 1]}, "the replies are identical"),
    ("normalised", {"prompt": TURN, "replies": ["a"], "ranking": [0]}, "nothing to compare"),
    ("normalised", {"prompt": TURN, "replies": ["a", "b"], "ranking": 0}, "not a list"),
    ("hh", {"chosen": HELLO, "rejected": HELLO + "a"}, "a reply is empty"),
    (
        "preference",
        {"prompt": TURN, "chosen": "a"},
        "it has no 'rejected'; its fields are 'chosen', 'prompt'.",
    ),
    ("preference", {}, "it has no 'chosen'; it has no fields at all."),
    (
        "preference",
        dict.fromkeys("ihgfedcba"),
        "'chosen'; its fields are 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', others.",
    ),
    (
        "preference",
        {"id": "1", "prompt": TURN, "replies": ["a", "b"], "ranking": [0, 1]},
        "it has no 'chosen'; its fields are 'id', 'prompt', 'ranking', 'replies', as of --format normalised.",
    ),
    ("preference", {"chosen": HELLO + "a", "rejected": HELLO + "b"}, "speakers, as of --format hh."),
    ("hh", {"messages": TURN}, "it has no 'chosen'; its fields are 'messages', as of --format sft."),
    (
        "sft",
        pair("a", "b"),
        "'messages'; its fields are 'chosen', 'prompt', 'rejected', as of --format preference.",
    ),
    ("sft", {"chosen": HELLO + "a", "rejected": HELLO + "b"}, "'chosen', 'rejected', as of --format hh."),
    ("kto", {"prompt": TURN, "completions": [], "tiers": []}, "'tiers', as of --format tiers."),
    ("tiers", {"prompt": TURN, "completion": "a", "label": True}, "'prompt', as of --format kto."),
    (
        "normalised",
        {"prompt": TURN, "replies": ["a"]},
        "it has no 'ranking'; its fields are 'prompt', 'replies'.",
    ),
    ("sft", {"messages": [*TURN, {"role": "assistant", "content": " "}]}, "a reply is empty"),
    ("sft", {"messages": TURN}, "do not end with a reply"),
    ("sft", {"messages": [{"role": "tool", "content": "x"}]}, "has the role 'tool'"),
    ("kto", {"prompt": TURN, "completion": "a", "label": "yes"}, "neither true nor false"),
    ("kto", {"prompt": TURN, "completion": "a", "label": True}, "nothing can be compared"),
]


@pytest.mark.parametrize(("fmt", "row", "why"), BAD)
def test_a_bad_row_is_named_with_its_line_and_stores_nothing(
    db: Database, fmt: str, row: Any, why: str
) -> None:
    result = import_rows(db, [None, row], fmt)
    assert result.added == 0
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith("Line 2 is left out: ")
    assert why in result.skipped[0]
    assert db.query("SELECT 1 FROM conversations") == []


def test_a_file_is_read_line_by_line_with_its_mistakes(tmp_path: Path, db: Database) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(pair("so", "no \ud800"))
    path.write_bytes(b"\xef\xbb\xbf" + good.encode() + b"\n\nno json\n\xff\xfe\n" + good.encode() + b"\n")
    with path.open("ab") as file:
        file.write(b"[" * 200_000)
    result = import_rows(db, read_rows(path), "preference")
    assert result.added == 1
    assert [text.split(":")[0] for text in sorted(result.skipped)] == [
        f"Line {n} is left out" for n in (3, 4, 5, 6)
    ]
    with pytest.raises(NotFound, match="There is no file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_an_import_leaves_the_chats_of_the_living_alone(db: Database) -> None:
    with pytest.raises(
        Refused, match=r"^'Ada' is somebody who chats here, .* - name somebody else with --pers"
    ):
        import_rows(db, [pair("so", "no")], "preference", somebody(db, "Ada").name.lower())
    assert db.query("SELECT 1 FROM conversations") == []
    for reply in ("no", "never"):  # whom an import made, another may add to
        assert import_rows(db, [pair("so", reply)], "preference", "the web").added == 1
    assert people.count(db, "simulated") == 1


def test_a_gzipped_file_is_told_by_how_it_begins(tmp_path: Path, db: Database) -> None:
    (path := tmp_path / "rows.jsonl").write_bytes(gzip.compress(json.dumps(pair("so", "no")).encode()))
    assert import_rows(db, read_rows(path), "preference").added == 1


@pytest.mark.parametrize("damaged", [slice(None, -30), slice(3)])
def test_a_gzipped_file_that_was_cut_off_is_a_sentence(tmp_path: Path, damaged: slice) -> None:
    whole = gzip.compress("".join(json.dumps(pair("so", f"no {n}")) + "\n" for n in range(99)).encode())
    (path := tmp_path / "rows.jsonl.gz").write_bytes(whole[damaged])
    with pytest.raises(Refused, match=r"rows.jsonl.gz' cannot be read \(.* - give a whole file of JSONL"):
        list(read_rows(path))


def test_a_gzipped_file_that_was_damaged_is_a_sentence(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"{}\n" * 99))
    whole[12:20] = b"\xff" * 8
    (path := tmp_path / "rows.gz").write_bytes(whole)
    with pytest.raises(Refused, match=r"rows.gz' cannot be read \(.* plain or gzip'd"):
        list(read_rows(path))


def test_an_unknown_format_is_refused(db: Database) -> None:
    with pytest.raises(Refused, match="no format 'parquet' - use one of preference"):
        export_rows(db, "parquet")


def test_an_export_is_read_while_it_is_written(db: Database) -> None:
    ada = somebody(db)
    with db.write():
        for number in range(250):
            rank(db, ada, a_turn(db, ada, ["a", "b"], question=f"{number}"), [1, 2])
    stream = export_rows(db, "preference")
    next(stream)
    conversations.delete(db, taught_turns(db)[-1].conversation_id)
    assert 1 + sum(1 for _ in stream) == 249


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data")
@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("preferences/oasst_en_ranked", "normalised"),
        ("preferences/fgrlhf_ranked4", "normalised"),
        ("raw/hh_helpful_rejection_sampled", "hh"),
    ],
)
def test_published_files_go_in_whole_or_say_why(db: Database, name: str, fmt: str) -> None:
    with gzip.open(SHARED / f"{name}.jsonl.gz") as file:
        lines = [json.loads(line) for line, _ in zip(file, range(300), strict=False)]
    result = import_rows(db, lines, fmt)
    assert result.added + len(result.skipped) == len(lines)
    assert result.added >= 0.9 * len(lines)
    assert len(taught_turns(db)) == result.added
