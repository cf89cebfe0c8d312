"""data/home.py: where state lies, and what is said where it cannot."""

import os
import stat
from pathlib import Path

import pytest

from data.database import open_database
from data.errors import NotFound, Problem
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


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`./var` of a directory in which no server was started, and no home is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTSCHOOL_HOME", raising=False)
    return tmp_path / "var"


@pytest.mark.parametrize("is_there", [False, True])  # as /var is, where somebody works in /
def test_another_directory_does_not_become_a_home_by_mistake(elsewhere: Path, is_there: bool) -> None:
    if is_there:
        elsewhere.mkdir()
    with pytest.raises(NotFound) as caught:
        open_home(begins=False)
    assert str(caught.value) == (
        f"There is no Night School in {str(elsewhere)!r} - run this where you started the server, "
        "or set NIGHTSCHOOL_HOME."
    )
    assert list(elsewhere.parent.rglob("*")) == [elsewhere] * is_there


def test_a_home_that_a_server_began_is_found(elsewhere: Path) -> None:
    open_database(open_home()).close()
    assert open_home(begins=False).root == elsewhere


def test_a_named_directory_that_is_there_is_meant(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the volume of a container is, in which accounts may be made before the first start."""
    (volume := elsewhere.parent / "volume").mkdir()
    monkeypatch.setenv("NIGHTSCHOOL_HOME", "volume")
    assert open_home(begins=False).root == volume


def test_a_named_directory_that_is_not_there_was_mistyped(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistyped = elsewhere.parent / "vra"
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(mistyped))
    with pytest.raises(NotFound) as caught:
        open_home(begins=False)
    assert str(caught.value) == (
        f"There is no Night School in {str(mistyped)!r} - "
        'check NIGHTSCHOOL_HOME; the first "chatbot serve" makes what it names.'
    )
    assert not mistyped.exists()
    assert open_home().root == mistyped


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
        for folder in (home.runs, home.backups, home.gradio):
            folder.chmod(0o755)
        open_home(tmp_path / "var")
    finally:
        os.umask(before)
    assert [mode(path) for path in files] == [0o600] * 3
    assert [mode(folder) for folder in (home.runs, home.backups, home.gradio)] == [0o700] * 3
    assert (mode(home.root), mode(home.adapters), mode(home.models)) == (0o755, 0o755, 0o755)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(Problem, match=r"cannot be written .* or set NIGHTSCHOOL_HOME to one that is"):
        open_home(tmp_path / "file" / "var")
