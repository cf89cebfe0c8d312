"""What can be computed again is remembered; a damaged memory is an empty one."""

from pathlib import Path

import pytest

from chatbot.remembered import recall, remember
from data.errors import Refused

DAMAGES = ["", "{", '{"a": 1', "[1]", "null", "\x00\xff", "[" * 100_000]


def test_what_was_remembered_is_recalled(tmp_path: Path) -> None:
    remember(tmp_path / "a.json", {"a": "b", "c": [1.5]})
    assert recall(tmp_path / "a.json") == {"a": "b", "c": [1.5]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_memory_is_empty_and_can_be_filled_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.json"
    assert recall(file) == {}
    file.write_text(damage, encoding="latin-1")
    assert recall(file) == {} and "what it held is found out again" in caplog.text
    remember(file, {"a": 1})
    assert recall(file) == {"a": 1} and list(tmp_path.iterdir()) == [file]


def test_a_memory_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    remember(file, {"a": 1})
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", _no_room)
        with pytest.raises(Refused, match="cannot be written"):
            remember(file, {"a": 2})
    assert recall(file) == {"a": 1} and list(tmp_path.iterdir()) == [file]


def _no_room(self: Path, text: str, encoding: str) -> int:
    raise OSError(28, "No space left on device")
