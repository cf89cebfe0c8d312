"""data/home.py: where state lies, and what is said where it cannot."""

from pathlib import Path

import pytest

from data.errors import Problem
from data.home import open_home


def test_state_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "elsewhere"))

    home = open_home()

    assert home.root == tmp_path / "elsewhere"
    assert home.database == tmp_path / "elsewhere" / "nightschool.db"
    assert all(folder.is_dir() for folder in (home.models, home.adapters, home.runs, home.backups))


@pytest.mark.parametrize("value", [None, ""])
def test_without_it_state_lies_in_var(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSCHOOL_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("NIGHTSCHOOL_HOME", value)

    assert open_home().root == tmp_path / "var"


def test_opening_twice_loses_nothing(tmp_path: Path) -> None:
    (open_home(tmp_path / "var").runs / "kept").write_text("here")

    assert (open_home(tmp_path / "var").runs / "kept").read_text() == "here"


def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(Problem, match=r"cannot be written .* or set NIGHTSCHOOL_HOME to one that is"):
        open_home(tmp_path / "file" / "var")
