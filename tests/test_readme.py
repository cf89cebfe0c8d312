"""What README.md promises: its links lead somewhere, its commands exist, its tree is the tree.

The commands run with `--help`, which also tests that each flag has its sentence; what they do is tested
beside their modules.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import chatbot.__main__
import data.__main__
import trainer.__main__

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line[2:].split("#")[0].strip() for line in README.splitlines() if line.startswith("$ ")]

HELP = [command for command in COMMANDS if command.endswith("--help")]
RUN: dict[str, Callable[[list[str]], int | None]] = {
    "chatbot": chatbot.__main__.run,
    "trainer": trainer.__main__.run,
    "data": data.__main__.main,
}


def split(command: str) -> tuple[str, list[str]]:
    """The program that a line of README starts, and its arguments."""
    words = shlex.split(command.removeprefix("python -m "))
    return words[0], words[1:]


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page, without their fences."""
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def tree() -> list[str]:
    """The paths of README's file tree."""
    listing = next(block for block in blocks(README) if block.startswith("README.md"))
    paths, folder = [], ""
    for line in listing.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.append(name)
        else:
            paths.append(folder + name)
    return paths


def test_the_two_commands_stand_within_the_first_fifteen_lines() -> None:
    top = "\n".join(README.splitlines()[:15])
    assert "$ make serve" in top and "$ make test" in top


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_to_files(link: str) -> None:
    assert not link.startswith(("/", "http")), "README links within the project only"
    assert (ROOT / link).exists()


@pytest.mark.parametrize("path", tree())
def test_the_tree_lists_what_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_tree_lists_all_modules() -> None:
    listed = set(tree())
    for package in ("data", "chatbot", "trainer"):
        for path in (ROOT / package).glob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if path.stem not in ("__init__", "__main__"):
                assert name in listed, f"README's tree lacks {name}"


def test_make_targets_exist() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert {"serve", "test", "venv"} <= named <= targets


@pytest.mark.parametrize("command", HELP)
def test_commands_exist_and_explain_themselves(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "var"))
    program, arguments = split(command)
    with pytest.raises(SystemExit) as ended:
        RUN[program](arguments)
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert out.startswith("usage:") and len(out.splitlines()) > 3
    assert not (tmp_path / "var").exists(), "--help must not touch the state"


@pytest.mark.parametrize("command", {split(command)[0]: command for command in HELP}.values())
def test_each_program_starts_by_itself(command: str, tmp_path: Path) -> None:
    program, arguments = split(command)
    words = [sys.executable, "-m", program, *arguments]
    environment = {"PATH": "/usr/bin:/bin", "NIGHTSCHOOL_HOME": str(tmp_path / "var")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert not (tmp_path / "var").exists(), "--help must not touch the state"


def test_the_readme_names_no_figure_of_speed_or_quality() -> None:
    """Measured figures stand in benchmarks/RESULTS.md, with the command that makes them."""
    assert not re.search(r"\d+ ?(%|ms|tokens/s|x faster|GB/s)", README)
