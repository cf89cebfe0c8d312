"""The adapter that changes nothing: read as any other, and with it the base says what it says without."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatbot import null_adapter as null_module
from chatbot.adapters import read_lora
from chatbot.basemodel import Base
from chatbot.models import merged_model
from chatbot.null_adapter import null_adapter
from data.home import Home


def test_it_changes_nothing(tiny_base: Base, home: Home) -> None:
    directory = null_adapter(tiny_base, home.adapters)
    assert read_lora(directory).rank == 1
    bare, dressed = (
        merged_model(tiny_base, adapter, device=torch.device("cpu"), dtype=torch.float32).state_dict()
        for adapter in (None, directory)
    )
    assert all(torch.equal(bare[name], dressed[name]) for name in bare)


def test_processes_that_write_it_at_once_all_find_it(
    tiny_base: Base, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, write = threading.Barrier(2, timeout=60), null_module._write

    def written(base: Base, directory: Path) -> None:
        write(base, directory)
        together.wait()

    monkeypatch.setattr(null_module, "_write", written)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: null_adapter(tiny_base, home.adapters), range(2)))
    assert found[0] == found[1] and list(home.adapters.iterdir()) == [found[0]]


def test_it_is_written_once_and_is_named_after_its_base(tiny_base: Base, home: Home) -> None:
    first = null_adapter(tiny_base, home.adapters)
    written_at = first.stat().st_mtime_ns
    assert null_adapter(tiny_base, home.adapters) == first
    assert first.stat().st_mtime_ns == written_at
    assert first.name == f"base-{tiny_base.sha256[:12]}"
    assert [path.name for path in home.adapters.iterdir()] == [first.name]
