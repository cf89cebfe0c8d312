"""Memory of keys and values: no request ever takes more columns than it was counted for."""

import platform
import random
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from chatbot import memory
from chatbot.basemodel import Base
from chatbot.llama import Llama
from chatbot.memory import (
    Memory,
    bytes_to_keep,
    column_bytes,
    free_bytes,
    give_back,
    give_back_soon,
    peak_bytes,
)
from chatbot.models import merged_model
from chatbot.runner import prepare
from chatbot.shelves import Place, Shelves
from tests.test_shelves import decode, put, shelves
from tests.waiting import until

CPU = torch.device("cpu")


def taken(store: Shelves) -> int:
    """Columns of all places on the shelves, used or not."""
    return sum(shelf.room * len(shelf.families) for shelf in store.occupied())


def begin(store: Shelves, prompt: int, replies: int) -> list[Place]:
    """The rows of a prompt that was read."""
    place = store.take(prompt, rows=replies)
    put(place, *range(prompt))
    return [place, *store.fork(place, replies - 1)]


@pytest.mark.parametrize("seed", range(10))
def test_replies_that_end_whenever_they_like_take_what_was_counted(seed: int) -> None:
    dice = random.Random(seed)
    counted = Memory(0, context=1000, is_shared=True)
    for _ in range(6):
        prompt, replies, new = dice.choice([1, 20, 100, 300, 700]), dice.randint(1, 9), dice.randint(1, 120)
        store = shelves(context=1000)
        most = counted.needed(prompt, replies, new)
        ends = {row: dice.choice([new - 1, dice.randrange(new)]) for row in begin(store, prompt, replies)}
        for step in range(new):
            assert taken(store) <= most
            for row in [row for row, end in ends.items() if end <= step]:
                store.leave(row)
                del ends[row]
            decode(store, dict.fromkeys(ends, 0.0))
        assert not ends


def test_what_four_replies_to_a_chat_and_one_to_a_long_prompt_need() -> None:
    counted = Memory(0, context=8192, is_shared=True)
    assert counted.needed(500, 1, 128) == 1024
    assert counted.needed(500, 4, 128) == 2048  # two that are left of four, each parted from what all said
    assert counted.needed(7900, 1, 256) == 8192
    assert Memory(0, context=8192, is_shared=False).needed(500, 4, 128) == 4096


def test_the_bytes_of_a_column_are_those_of_a_shelf(tiny_base: Base) -> None:
    weights = prepare(merged_model(tiny_base, None, device=CPU, dtype=torch.float32), "bfloat16")
    assert isinstance(weights, Llama)
    shelf = weights.shelves().take(300).shelf
    one = column_bytes(tiny_base.config, torch.bfloat16)
    assert shelf.keys.nbytes + shelf.values.nbytes == len(shelf.owners) * shelf.room * one


def test_the_bytes_of_a_column_are_those_of_transformers_cache() -> None:
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    model = AutoModelForCausalLM.from_config(config).eval()
    layers = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values.layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert held == 3 * column_bytes(config, torch.float32)


def test_a_container_has_what_its_limit_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    on_machine = free_bytes(CPU)
    assert on_machine > 0
    (tmp_path / "memory.stat").write_text("anon 300\nfile 900\n")
    for limit, left in (("1000\n", 700), ("200\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert free_bytes(CPU) == left
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) > 1000


def test_of_a_gpu_what_pytorch_holds_and_does_not_use_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    says = {"mem_get_info": (100, 1000), "memory_reserved": 50, "memory_allocated": 20}
    for name, told in says.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, told=told: told)
    for limit, free in ((1.0, 130), (0.1, 80)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device, limit=limit: limit)
        assert free_bytes(torch.device("cuda")) == free


def test_the_peak_is_what_was_held_whatever_was_given_back() -> None:
    before = peak_bytes()
    more = before - psutil.Process().memory_info().rss + 2**26
    held = torch.ones(more, dtype=torch.uint8)
    del held
    assert before + 2**25 < peak_bytes() < before + 2**27


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the C library of most Linux systems")
def test_what_is_free_between_what_is_used_is_given_back() -> None:
    process, kept = psutil.Process(), [torch.ones(2**14) for _ in range(1000)]  # 64 MB, in small pieces
    del kept[:-1]  # the last one lies above them all
    held = process.memory_info().rss
    give_back(CPU)
    assert held - process.memory_info().rss > 2**25


def test_memory_goes_back_later_and_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(memory, "_SOON_SECONDS", 0.01)
    monkeypatch.setattr(memory, "lower_priority", lambda: done.append("at the lowest priority"))
    monkeypatch.setattr(memory, "give_back", lambda device: done.append(device.type))
    give_back_soon(CPU)
    until(lambda: len(done) == 2)
    assert done == ["at the lowest priority", "cpu"]


def test_a_third_of_what_is_free_is_shared_out(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    one = column_bytes(tiny_base.config, torch.float32)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 9 * 1000 * one + 1)
    assert Memory.of(CPU, tiny_base.config, torch.float32, 1024, is_shared=True).columns == 1000


def test_a_large_gpu_keeps_more_for_the_next_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 2**30
    for there, kept in ((4 * gigabyte, gigabyte // 4), (64 * gigabyte, 2 * gigabyte)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, there=there: (1, there))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
        assert bytes_to_keep(torch.device("cuda"), 0) == kept
    assert bytes_to_keep(CPU, 0) == gigabyte // 4


def test_two_conversations_of_the_longest_kind_are_kept_where_a_sixteenth_of_memory_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gigabyte = 2**30
    monkeypatch.setattr(memory, "free_bytes", lambda device: 16 * gigabyte)
    for one, kept in ((gigabyte // 16, gigabyte // 4), (gigabyte // 4, gigabyte // 2), (gigabyte, gigabyte)):
        assert bytes_to_keep(CPU, one) == kept
