"""The adapter that changes nothing: read as any other, and with it the base says what it says without."""

import torch

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


def test_it_is_written_once_and_is_named_after_its_base(tiny_base: Base, home: Home) -> None:
    first = null_adapter(tiny_base, home.adapters)
    written_at = first.stat().st_mtime_ns
    assert null_adapter(tiny_base, home.adapters) == first
    assert first.stat().st_mtime_ns == written_at
    assert first.name == f"base-{tiny_base.sha256[:12]}"
    assert [path.name for path in home.adapters.iterdir()] == [first.name]
