"""prompts.py: the prompts that ship, and files of prompts with their mistakes."""

from pathlib import Path

import pytest

from data.errors import NotFound, Refused
from data.prompts import judging_prompts, practice_prompts, read_prompts


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
        "[]",
        "{}",
        '{"prompt": "text"}',
        '{"prompt": []}',
        '{"prompt": [{"role": "user"}]}',
        '{"prompt": [{"role": "robot", "content": "x"}]}',
        '{"prompt": [{"role": "user", "content": " "}]}',
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
    with pytest.raises(Refused, match="cannot be read"):
        read_prompts(path)


def test_practice_and_judging_prompts_are_many_and_share_nothing() -> None:
    practice = {str(prompt.messages) for prompt in practice_prompts()}
    judging = {str(prompt.messages) for prompt in judging_prompts()}
    assert len(practice) == len(practice_prompts()) >= 600
    assert len(judging) == len(judging_prompts()) >= 300
    assert practice & judging == set()
    assert {prompt.source for prompt in practice_prompts()} == {"practice"}
