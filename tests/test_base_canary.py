"""One text by which a server shows that it holds the base: what our own weights say of it."""

import json
from pathlib import Path

import pytest
import torch

from chatbot import base_canary
from chatbot.base_canary import base_canaries
from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.models import load_model
from chatbot.remote import RemoteEngine
from data.errors import Problem
from data.home import Home
from tests.fake_vllm import FakeVllm


def test_it_is_what_the_engine_here_computes(tiny_base: Base, engine: Engine, tmp_path: Path) -> None:
    (canary,) = base_canaries(tiny_base, tmp_path)
    here = engine.mean_logprob("base", canary["ids"], canary["reply_start"])
    assert canary["logprob"] == pytest.approx(here, abs=1e-4)
    assert len(canary["ids"]) - canary["reply_start"] == 32 and "bfloat16" not in canary


def test_it_is_computed_once(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = base_canaries(tiny_base, tmp_path)
    monkeypatch.setattr(base_canary, "load_model", lambda base, **format: pytest.fail("read again"))
    assert base_canaries(tiny_base, tmp_path) == first == [json.loads((tmp_path / "canary.json").read_text())]


@pytest.mark.parametrize(
    "found", ["", "{", "[]", "{}", "[[]]", '{"ids": [1, 2], "reply_start": 1, "logprob": -2.5}', b"\xff"]
)
def test_what_a_power_cut_or_another_release_left_is_computed_anew(
    tiny_base: Base, tmp_path: Path, found: str | bytes
) -> None:
    file = tmp_path / "canary.json"
    file.write_bytes(found if isinstance(found, bytes) else found.encode())
    canaries = base_canaries(tiny_base, tmp_path)
    assert len(canaries[0]["ids"]) > 32
    assert [json.loads(file.read_text())] == canaries and not list(tmp_path.glob("*.part"))


def test_it_is_on_the_disk_before_it_has_its_name(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[tuple[str, bool]] = []
    file = tmp_path / "canary.json"
    monkeypatch.setattr("data.files.force_to_disk", lambda path: forced.append((path.suffix, file.exists())))
    base_canaries(tiny_base, tmp_path)
    assert forced == [(".part", False), ("", True)]


def test_it_is_computed_in_what_fits_and_otherwise_not_at_all(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(tiny_base, device=torch.device("cpu"), dtype=torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    (exact,) = base_canaries(tiny_base, tmp_path)
    (tmp_path / "canary.json").unlink()
    free = 2 * weights
    monkeypatch.setattr(base_canary, "free_bytes", lambda device: free)
    assert base_canaries(tiny_base, tmp_path) == [] and not list(tmp_path.glob("canary*"))
    assert "do not fit into the 0.0 GiB of memory that are free" in caplog.text
    free = 3 * weights
    (rounded,) = base_canaries(tiny_base, tmp_path)
    assert rounded["bfloat16"] and rounded["logprob"] == pytest.approx(exact["logprob"], abs=0.08)


def test_servers_of_which_nobody_knows_how_they_compute_may_round_as_bfloat16_does(
    tiny_base: Base, servers: list[FakeVllm], home: Home
) -> None:
    """The canary is in float32 all the same. 0.14 nats are noise of a twentieth of the weights' spread."""
    (server, _) = servers
    for rounds_by, is_taken in ((0.05, True), (-0.05, True), (0.14, False), (-0.14, False)):
        server.rounds_by = rounds_by
        engine = RemoteEngine(tiny_base, [server.url], home.adapters, patience=30)
        if is_taken:
            engine.start()
        else:
            with pytest.raises(Problem, match=r"\(0\.14\d\d nats a token off, 0\.08 allowed\)"):
                engine.start()
        engine.close()
