"""Flags are made from a frozen dataclass."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from chatbot.flags import add_flags, from_flags
from data.errors import Refused
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
