"""data/home.py: where state lies, and what is said where it cannot."""

import os
import stat
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


def test_what_holds_words_becomes_its_owners_alone_and_versions_stay_readable(tmp_path: Path) -> None:
    """Also in a home that was made before this was so, with the log of a crash beside its database."""
    before = os.umask(0o022)
    try:
        home = open_home(tmp_path / "var")
        files = [home.root / f"nightschool.db{suffix}" for suffix in ("", "-wal", "-shm")]
        for path in files:
            path.touch(0o644)
        for folder in (home.runs, home.backups):
            folder.chmod(0o755)
        open_home(tmp_path / "var")
    finally:
        os.umask(before)
    assert [mode(path) for path in files] == [0o600] * 3
    assert (mode(home.runs), mode(home.backups)) == (0o700, 0o700)
    assert (mode(home.root), mode(home.adapters), mode(home.models)) == (0o755, 0o755, 0o755)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(Problem, match=r"cannot be written .* or set NIGHTSCHOOL_HOME to one that is"):
        open_home(tmp_path / "file" / "var")
