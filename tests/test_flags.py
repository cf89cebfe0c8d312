"""Flags are made from a frozen dataclass, and problems reach a person as sentences."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

from chatbot.flags import ENVIRONMENT, add_flags, from_flags, run_cli
from data.errors import Busy, Refused, out_of_memory
from tests.flags import to_flags


@dataclass(frozen=True)
class Settings:
    """One field of every kind that a flag can be."""

    max_tokens: Annotated[int, "The longest reply."] = 128
    rate: Annotated[float, "A share, 100% at most."] = 0.5
    model: Annotated[str | None, "A directory."] = None
    output: Annotated[Path | None, "Where it goes."] = None
    algorithm: Annotated[Literal["ppo", "bestofk"], "How it learns."] = "ppo"
    trainer: Annotated[bool, "Start the trainer too."] = True

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise Refused(f"{self.max_tokens!r} tokens are too few - use 1 or more.")


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser, Settings)
    return from_flags(parser.parse_args(arguments), Settings)


def test_without_flags_the_defaults_stand() -> None:
    assert parse() == Settings()


def test_each_kind_of_field_is_read_from_its_flag() -> None:
    read = parse(
        "--max-tokens=7", "--rate=0.25", "--model=x", "--output=a/b", "--algorithm=bestofk", "--no-trainer"
    )
    assert read == Settings(7, 0.25, "x", Path("a/b"), "bestofk", False)


def test_the_sentence_and_the_default_are_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "The longest reply. (default: 128)" in text
    assert "A share, 100% at most." in text and "--trainer, --no-trainer" in text


def test_the_dataclass_checks_what_the_flags_said() -> None:
    with pytest.raises(Refused, match="too few - use 1 or more"):
        parse("--max-tokens=0")


@pytest.mark.parametrize("arguments", [("--max-tokens=many",), ("--algorithm=dpo",), ("--unknown",)])
def test_a_flag_that_cannot_be_read_ends_with_code_2(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("settings", [Settings(), Settings(7, 0.25, "-x y", Path("a"), "bestofk", False)])
def test_a_config_survives_the_way_to_a_child_process(settings: Settings) -> None:
    assert parse(*to_flags(settings)) == settings


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
