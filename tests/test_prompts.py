"""prompts.py: the prompts that ship, and files of prompts with their mistakes."""

import gzip
from pathlib import Path

import pytest

from data.errors import NotFound, Refused
from data.prompts import (
    borderline_prompts,
    capability_items,
    judging_prompts,
    paraphrases,
    passage,
    practice_prompts,
    read_prompts,
)


def test_a_file_gives_its_prompts_in_order(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}\n'
        "\n"
        '{"prompt": [{"role": "user", "content": "为什么\\u0000"}]}\n',
        encoding="utf-8",
    )
    first, second = read_prompts(path)
    assert [message["content"] for message in first.messages] == ["Be brief.", "Why?"]
    assert second.messages == ({"role": "user", "content": "为什么\ufffd"},)
    assert (second.turn_id, second.source) == (None, "prompts.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        "no json",
        "[" * 100_000,
        "[]",
        "{}",
        '{"prompt": "text"}',
        '{"prompt": []}',
        '{"prompt": [{"role": "user"}]}',
        '{"prompt": [{"role": "robot", "content": "x"}]}',
        '{"prompt": [{"role": "user", "content": " "}]}',
        '{"prompt": [{"role": "user", "content": "' + "x" * 32_001 + '"}]}',
        '{"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": [{"role": "user", "content": "good"}]}\n\n' + row + "\n")
    with pytest.raises(Refused, match=r"Line 3 of .* is no prompt \(.*\) - write"):
        read_prompts(path)


def test_a_missing_empty_or_binary_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(NotFound, match="There is no file"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(Refused, match="has no prompts"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match=r"Line 1 of .* is no prompt"):
        read_prompts(path)
    with pytest.raises(Refused, match=r"cannot be read .* - give a whole file of JSONL"):
        read_prompts(tmp_path)


def test_a_file_may_be_packed(tmp_path: Path) -> None:
    row = b'{"prompt": [{"role": "user", "content": "Why?"}]}\n'
    (path := tmp_path / "prompts.jsonl").write_bytes(gzip.compress(row * 2))
    assert [prompt.messages[0]["content"] for prompt in read_prompts(path)] == ["Why?", "Why?"]


def test_a_line_that_would_fill_the_memory_is_no_prompt(tmp_path: Path) -> None:
    (path := tmp_path / "prompts.jsonl").write_bytes(b" " * (2**26 + 1))
    with pytest.raises(Refused, match="has a line of more than 64 MiB"):
        read_prompts(path)


def test_practice_and_judging_prompts_are_many_and_share_nothing() -> None:
    practice = {str(prompt.messages) for prompt in practice_prompts()}
    judging = {str(prompt.messages) for prompt in judging_prompts()}
    assert len(practice) == len(practice_prompts()) >= 600
    assert len(judging) == len(judging_prompts()) >= 300
    assert practice & judging == set()
    assert {prompt.source for prompt in practice_prompts()} == {"practice"}


def test_borderline_prompts_are_single_questions_that_nothing_else_asks() -> None:
    english, chinese = borderline_prompts("en"), borderline_prompts("zh")
    assert borderline_prompts() == english + chinese
    assert len({str(p.messages) for p in english}) == len(english) >= 60
    assert len(chinese) >= 8 and all(len(p.messages) == 1 for p in borderline_prompts())
    assert all(p.messages[0]["content"].isascii() for p in english)
    assert not any(p.messages[0]["content"].isascii() for p in chinese)
    others = {str(p.messages) for p in (*practice_prompts(), *judging_prompts())}
    assert others.isdisjoint(str(p.messages) for p in borderline_prompts())


def test_paraphrases_ask_one_thing_in_two_wordings() -> None:
    assert len({p.prompt for p in paraphrases()}) == len(paraphrases()) == 50
    assert all(p.prompt != p.reworded and p.replies[0] != p.replies[1] for p in paraphrases())
    assert all(text.strip() == text and text for p in paraphrases() for text in (p.reworded, *p.replies))


def test_capability_items_have_four_choices_and_no_favourite_place() -> None:
    items = capability_items()
    assert len({item.prompt for item in items}) == len(items) == 100
    assert all(len(set(item.choices)) == 4 for item in items)
    assert [sum(item.answer == place for item in items) for place in range(4)] == [25] * 4


def test_the_passage_is_a_text_of_a_thousand_words() -> None:
    assert 900 <= len(passage().split()) <= 1100
    assert passage().isascii()
