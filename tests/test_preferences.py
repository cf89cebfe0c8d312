"""trainer/preferences.py: files of rows become rankings, and what is no row is named by its line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import NotFound, Refused
from trainer.preferences import read_rows, split_by_conversation

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "preferences"


def a_row(**changes: Any) -> dict[str, Any]:
    """A ranking of three replies, the last two tied."""
    prompt = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and now?"},
    ]
    row = {"id": "r1", "prompt": prompt, "replies": ["a", "b", "c"], "ranking": [1, [0, 2]], "source": "s"}
    return {**row, **changes}


def a_file(path: Path, *rows: object) -> Path:
    """The rows as JSONL; a string stands as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_packed_rows_need_no_name_that_says_so(tmp_path: Path) -> None:
    (path := tmp_path / "rows").write_bytes(gzip.compress(json.dumps(a_row()).encode()))
    assert len(read_rows([path])) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_row_is_a_ranking_plain_or_packed(tmp_path: Path, name: str) -> None:
    (turn,) = read_rows([a_file(tmp_path / name, a_row(), "")])
    assert (turn.ranking_id, turn.replies, turn.places) == ("r1", ("a", "b", "c"), (2, 1, 2))
    assert turn.pairs() == [(1, 0, 1.0), (0, 2, 0.5), (1, 2, 1.0)]
    assert [message["role"] for message in turn.prompt] == ["user", "assistant", "user"]
    assert (turn.weight, turn.source, turn.person_id) == (1.0, "imported", "s")


def test_a_prompt_may_be_one_text(tmp_path: Path) -> None:
    (turn,) = read_rows([a_file(tmp_path / "f", a_row(prompt="hi"))])
    assert turn.prompt == ({"role": "user", "content": "hi"},)


def test_files_follow_one_another_and_a_limit_holds_for_each(tmp_path: Path) -> None:
    paths = [a_file(tmp_path / name, *(a_row(id=f"{name}{i}") for i in range(3))) for name in "ab"]
    assert [turn.ranking_id for turn in read_rows(paths, limit=2)] == ["a0", "a1", "b0", "b1"]
    assert len(read_rows(paths)) == 6


def test_dialogues_that_begin_alike_in_one_source_are_one_conversation(tmp_path: Path) -> None:
    rows = [a_row(), a_row(prompt="hi"), a_row(prompt="ho"), a_row(source="t")]
    ids = [turn.conversation_id for turn in read_rows([a_file(tmp_path / "f", *rows)])]
    assert ids[0] == ids[1]
    assert len({*ids}) == 3


def test_a_split_parts_conversations_and_keeps_every_row(tmp_path: Path) -> None:
    rows = [a_row(id=str(i), prompt=f"question {i // 2}") for i in range(400)]
    turns = read_rows([a_file(tmp_path / "f", *rows)])
    kept, held_out = split_by_conversation(turns, 0.2, seed=0)
    assert sorted([*kept, *held_out], key=lambda t: int(t.ranking_id)) == turns
    assert not {t.conversation_id for t in kept} & {t.conversation_id for t in held_out}
    assert 0.1 < len(held_out) / len(turns) < 0.3
    assert split_by_conversation(turns, 0.2, seed=1)[1] != held_out


def test_a_split_leaves_dialogues_that_begin_alike_together_across_sources(tmp_path: Path) -> None:
    rows = [
        a_row(id=f"{source}{i}", prompt=f"question {i} of a great many", source=source)
        for i in range(50)
        for source in "st"
    ]
    kept, held_out = split_by_conversation(read_rows([a_file(tmp_path / "f", *rows)]), 0.5, seed=0)
    asked = [{turn.prompt[0]["content"] for turn in side} for side in (kept, held_out)]
    assert kept and held_out and not asked[0] & asked[1]


@pytest.mark.parametrize(
    "row, sentence",
    [
        ("{", "is no JSON object - write one row a line"),
        ("[" * 100_000, "is no JSON object - write one row a line"),
        ([1], "is no JSON object - write one row a line"),
        (a_row(prompt=[]), "has no prompt .*not a list.* - give chat messages"),
        (a_row(prompt=[{"role": "robot", "content": "hi"}]), "has no prompt .*role 'robot'"),
        (a_row(replies="abc"), "has no replies to compare .*not a list of texts.* - give 1 to 64 texts"),
        (a_row(replies=[1, 2, 3]), "has no replies to compare .*not a list of texts"),
        (a_row(replies=[]), "has no replies to compare .there are no replies. - give 1 to 64 texts"),
        (a_row(replies=["a"] * 65), "has no replies to compare .there are 65 replies, more than 64. - give"),
        (a_row(replies=["a", "a" * 32_001]), "has no replies to compare .a text has 32,001 characters, more"),
        (a_row(prompt="a" * 32_001), "has no prompt .a text has 32,001 characters, more than 32,000. - give"),
        (a_row(ranking=None), "has the ranking None - name its 3 replies once each"),
        (a_row(ranking=[0, 1]), "has the ranking .* - name its 3 replies once each"),
        (a_row(ranking=[0, 1, 1]), "has the ranking"),
        (a_row(ranking=[1, 2, 3]), "has the ranking"),
        (a_row(ranking=[0, True, 2]), "has the ranking"),
        (a_row(ranking=[0, [1, "2"]]), "has the ranking"),
    ],
)
def test_what_is_no_row_is_refused_with_its_file_and_line(tmp_path: Path, row: object, sentence: str) -> None:
    path = a_file(tmp_path / "rows.jsonl", a_row(), row)
    with pytest.raises(Refused, match=f"Line 2 of '.*rows.jsonl' {sentence}"):
        read_rows([path])


def test_an_empty_reply_or_two_equal_ones_were_judged_too(tmp_path: Path) -> None:
    turns = read_rows([a_file(tmp_path / "f", a_row(replies=["", "b", "b"]))])
    assert turns[0].replies == ("", "b", "b")


def test_rows_to_score_need_no_ranking(tmp_path: Path) -> None:
    row = {"prompt": "hi", "replies": ["a", "b"]}
    (turn,) = read_rows([a_file(tmp_path / "f", row)], needs_ranking=False)
    assert (turn.places, turn.ranking_id) == ((1, 1), f"Line 1 of {str(tmp_path / 'f')!r}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"There is no file .*none.jsonl"):
        read_rows([tmp_path / "none.jsonl"])
    whole = gzip.compress(b"{}" * 100)
    (tmp_path / "half.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        Refused, match=r"half.gz' cannot be read .* - give a whole file of JSONL, plain or gzip'd"
    ):
        read_rows([tmp_path / "half.gz"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real preferences is not here")
def test_every_published_file_can_be_read() -> None:
    counts = {path.name: len(read_rows([path])) for path in sorted(SHARED.glob("*.jsonl.gz"))}
    assert counts["hh_helpful_online.jsonl.gz"] == 1130
    assert counts["oasst_en_ranked.jsonl.gz"] == 212
    assert all(counts.values())
