"""The format of a base is measured once on a machine and remembered; int8 must be worth its rounding."""

import json

import pytest
import torch

from chatbot import precision, serving
from chatbot.basemodel import Base
from chatbot.config import ServeConfig
from chatbot.kernels import Format
from chatbot.precision import FORMATS, choose, fastest, machine, measure
from chatbot.serving import engine_for
from data.home import Home


def test_every_format_is_measured(tiny_base: Base) -> None:
    milliseconds = measure(tiny_base)
    assert tuple(milliseconds) == FORMATS
    assert all(time > 0 for time in milliseconds.values())


def test_it_is_measured_once_and_remembered(
    tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = choose(tiny_base, home)
    [kept] = json.loads((home.models / "formats.json").read_text()).values()
    assert kept["format"] == first == fastest(kept["milliseconds"])
    monkeypatch.setattr(precision, "measure", lambda base: 1 / 0)
    assert choose(tiny_base, home) == first


@pytest.mark.parametrize("other", ["a processor without avx512", "another PyTorch"])
def test_another_machine_is_measured_anew(
    tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    choose(tiny_base, home)
    monkeypatch.setattr(precision, "machine", lambda: other)
    monkeypatch.setattr(precision, "measure", lambda base: {"float32": 1.0, "bfloat16": 9.0, "int8": 9.0})
    assert choose(tiny_base, home) == "float32"
    assert len(json.loads((home.models / "formats.json").read_text())) == 2


def test_a_machine_is_told_by_more_than_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine()
    assert torch.__version__ in here and torch.backends.cpu.get_cpu_capability() in here
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert machine() != here


@pytest.mark.parametrize("damage", ["", "{", "[1]", "\x00\xff"])
def test_a_damaged_file_is_measured_again_and_replaced(tiny_base: Base, home: Home, damage: str) -> None:
    (home.models / "formats.json").write_text(damage, encoding="latin-1")
    assert choose(tiny_base, home) in FORMATS
    assert len(json.loads((home.models / "formats.json").read_text())) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_a_server_decodes_in_the_format_that_was_measured_unless_one_is_named(
    tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    monkeypatch.setattr(serving, "choose", lambda base, home: form)
    assert engine_for(tiny_base, home, ServeConfig()).form == form
    assert engine_for(tiny_base, home, ServeConfig(precision="bfloat16")).form == "bfloat16"


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ((40.0, 20.0, 10.0), "int8"),
        ((40.0, 20.0, 17.0), "bfloat16"),
        ((20.0, 40.0, 17.0), "float32"),
        ((20.0, 40.0, 15.0), "int8"),
    ],
)
def test_int8_is_chosen_where_it_is_faster_by_a_quarter(times: tuple[float, ...], chosen: Format) -> None:
    assert fastest(dict(zip(FORMATS, times, strict=True))) == chosen
