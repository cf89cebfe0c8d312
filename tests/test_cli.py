"""The frame of every command line: problems reach a person as sentences."""

import errno
import json
import os
from collections.abc import Callable, Sequence

import pytest
import torch
from safetensors import SafetensorError

import chatbot.__main__
import data.__main__
import trainer.__main__
from data import people
from data.cli import ENVIRONMENT, run_cli
from data.database import Database
from data.errors import Busy, Refused, disk_full, out_of_memory
from data.home import Home


def test_a_problem_is_a_sentence_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: Sequence[str]) -> int:
        raise Busy("Another refresh is running - wait for it.")

    assert run_cli(run, []) == Busy.exit_code != 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Another refresh is running - wait for it.\n")


def test_with_json_a_problem_is_an_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: Sequence[str]) -> int:
        raise Refused("No such thing - name another.")

    assert run_cli(run, ["--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "No such thing - name another."} and err == ""


def test_ctrl_c_ends_with_130_and_a_bug_keeps_its_traceback() -> None:
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    def broken(argv: Sequence[str]) -> int:
        raise ZeroDivisionError

    assert run_cli(interrupted, []) == 130
    with pytest.raises(ZeroDivisionError):
        run_cli(broken, [])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
        ),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_is_a_sentence_with_a_remedy(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: Sequence[str]) -> int:
        raise error

    assert run_cli(run, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("The memory of this machine or of its GPU ran out")
    assert str(error).split(". ")[0] in said and " - close other programs" in said
    assert run_cli(run, ["--json"]) == 2 and json.loads(capsys.readouterr().out) == {"error": said.strip()}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EDQUOT, "quota")], ids=str
)
def test_a_full_disk_is_a_sentence(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: Sequence[str]) -> int:
        raise error

    assert run_cli(run, []) == 2
    assert capsys.readouterr().err == "The disk is full - free some space and try again.\n"


def test_what_safetensors_says_of_a_full_disk_is_known() -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert disk_full(SafetensorError(said)) and not disk_full(SafetensorError("Error while serializing"))
    assert not disk_full(OSError(errno.EACCES, "no")) and not disk_full(Refused(said))


def test_what_pytorch_says_of_a_cpu_without_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert out_of_memory(raised.value) and not out_of_memory(RuntimeError("mat1 and mat2 have no shape"))


def test_the_exit_code_of_the_command_is_passed_on() -> None:
    assert run_cli(lambda argv: None, []) == 0
    assert run_cli(lambda argv: len(argv), ["a", "b", "c"]) == 3


def test_a_command_tells_the_libraries_how_to_wait_where_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "PASSIVE"})
    assert run_cli(lambda arguments: 0, []) == 0
    assert os.environ == {**ENVIRONMENT, "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(
    ("run", "command"),
    [
        (data.__main__.run, ["stats"]),
        (chatbot.__main__.run, ["person", "list"]),
        (trainer.__main__.run, ["rollback"]),
        (trainer.__main__.run, ["watch"]),
    ],
)
@pytest.mark.parametrize("first", [0, 100, 4096], ids=["header", "schema", "tables"])
def test_damage_is_a_sentence_for_whichever_command_meets_it(
    db: Database,
    home: Home,
    capsys: pytest.CaptureFixture[str],
    run: Callable[[Sequence[str]], int | None],
    command: list[str],
    first: int,
) -> None:
    people.add(db, "ada")
    db.vacuum()
    db.close()
    content = bytearray(home.database.read_bytes())
    content[first:] = b"\xa5" * (len(content) - first)
    home.database.write_bytes(content)
    assert run_cli(run, command) == 2
    said = capsys.readouterr().err
    assert ("is damaged" in said or "is no database" in said) and "restore" in said
