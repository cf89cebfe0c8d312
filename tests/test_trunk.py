"""Reading a decoder in two halves: the same numbers, and the lower half once."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma3nTextConfig,
    Gemma3TextConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from chatbot import trunk
from chatbot.basemodel import Base, load_base
from chatbot.batch import TokenBatch
from chatbot.packing import Rectangle
from chatbot.policy import Policy
from data.home import Home
from tests.tiny import base_of, make_tiny_model

CPU = torch.device("cpu")
SEQUENCES = [[1, 80, 90, 100, 2], [1, 7, 8, 9, 10, 11, 12, 13], [5]]
SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
}  # fmt: skip
SHARED = Gemma3nTextConfig(
    **SMALL, sliding_window=4, num_kv_shared_layers=2, hidden_size_per_layer_input=8, laurel_rank=4,
    layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=259,
)  # fmt: skip
"""The upper two layers use keys and values of the lower two."""
OTHERS: dict[str, PreTrainedConfig] = {
    "gemma 3": Gemma3TextConfig(**SMALL, sliding_window=4),
    "gemma 3n": SHARED,
    "mistral": MistralConfig(**SMALL, sliding_window=4),
    "qwen 3": Qwen3Config(**SMALL),
}


@pytest.fixture
def base(home: Home) -> Base:
    """Four layers."""
    return load_base(str(make_tiny_model(home.root / "four", layers=4)), home, lambda text: None)


def a_policy(base: Base, dtype: torch.dtype = torch.float32) -> Policy:
    """`upper` changes the last two of four layers, `top` the last, `whole` all."""
    policy = Policy(base, device=CPU, dtype=dtype)
    for seed, (name, depth) in enumerate({"upper": 0.5, "top": 0.25, "whole": 1.0}.items()):
        policy.add(name, seed=seed, rank=2, depth=depth)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in policy.parameters(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def states(policy: Policy, name: str | None, left_pad: int | None = None) -> Tensor:
    """Of every real token of SEQUENCES, one after the other: (N, D)."""
    batch = TokenBatch.of(SEQUENCES, CPU, left_pad)
    with policy.wear(name):
        return policy.hidden(batch)[batch.mask]


def in_one_piece(policy: Policy, name: str | None) -> Tensor:
    """The same without any halves."""
    halves = cast(Any, policy)._trunk
    halves._is_divisible = dict.fromkeys(range(len(halves.layers)), False)
    try:
        return states(policy, name)
    finally:
        halves._is_divisible.clear()


class Counter:
    """How many rows pass through the first layer, where they are not packed into one."""

    def __init__(self, policy: Policy) -> None:
        self.rows = 0
        halves = cast(Any, policy)._trunk
        halves._may_pack = False
        first = halves.layers[0]
        first.self_attn.register_forward_hook(self)

    def __call__(self, layer: nn.Module, given: Any, said: tuple[Tensor, ...]) -> None:
        self.rows += len(said[0])


@pytest.mark.parametrize("name, layers", [("upper", {2, 3}), ("top", {3}), ("whole", {0, 1, 2, 3})])
def test_an_adapter_is_as_deep_as_asked_for(base: Base, name: str, layers: set[int]) -> None:
    assert {int(key.split(".layers.")[1].split(".")[0]) for key in a_policy(base).state(name)} == layers


def test_the_shallowest_adapter_has_one_layer(base: Base) -> None:
    policy = a_policy(base)
    policy.add("least", seed=0, depth=1e-9)
    assert {key.split(".layers.")[1].split(".")[0] for key in policy.state("least")} == {"3"}


@pytest.mark.parametrize("name", ["upper", "top", "whole"])
@pytest.mark.parametrize("left_pad", [None, 0, 3])
def test_two_halves_say_what_the_whole_says(base: Base, name: str, left_pad: int | None) -> None:
    policy = a_policy(base)
    whole = in_one_piece(policy, name)
    torch.testing.assert_close(states(policy, name, left_pad), whole, atol=1e-5, rtol=0)
    with policy.remembering():
        for _ in range(2):
            torch.testing.assert_close(states(policy, name, left_pad), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_models_say_the_same_in_halves_or_are_read_whole(name: str, home: Home) -> None:
    policy = a_policy(base_of(OTHERS[name], home))
    whole = in_one_piece(policy, "upper")
    with policy.remembering():
        torch.testing.assert_close(states(policy, "upper"), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(states(policy, "upper"), whole, atol=1e-5, rtol=0)
    assert cast(Any, policy)._trunk._is_divisible == {2: name != "gemma 3n"}


@torch.no_grad()
def test_in_bfloat16_the_halves_are_the_whole_too(base: Base) -> None:
    policy = a_policy(base, torch.bfloat16)
    whole = in_one_piece(policy, "upper")
    assert torch.equal(states(policy, "upper"), whole)
    with policy.remembering():
        states(policy, "upper")
        assert torch.equal(states(policy, "upper"), whole)


class Tuples(nn.Module):
    """A decoder of the old kind, whose layers give a tuple; and the model around it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Doubled() for _ in range(4))

    def get_decoder(self) -> nn.Module:
        return self

    def forward(self, layout: Rectangle) -> Tensor:
        states = layout.batch.ids[:, :, None].float()
        for layer in self.layers:
            states = layer(states)[0]
        return states


class Doubled(nn.Module):
    def forward(self, states: Tensor) -> tuple[Tensor]:
        return (2 * states,)


@pytest.mark.parametrize("sequences", [[[5]], SEQUENCES], ids=["one token", "several"])
def test_a_model_that_cannot_be_halved_is_read_whole(sequences: list[list[int]]) -> None:
    model = Tuples()
    halves = trunk.Trunk(cast(PreTrainedModel, model))
    batch = TokenBatch.of(sequences, CPU)
    for _ in range(2):
        assert torch.equal(halves.read(batch, 2, model), 16.0 * batch.ids[:, :, None])
        assert all("forward" not in vars(layer) for layer in model.layers)


def test_gradients_are_those_of_the_whole(base: Base) -> None:
    policy = a_policy(base)
    moved = policy.parameters("upper")
    halves, whole = (
        torch.autograd.grad(read(policy, "upper").square().sum(), moved) for read in (states, in_one_piece)
    )
    for one, other in zip(halves, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_lower_half_is_read_once_for_all(base: Base) -> None:
    policy = a_policy(base)
    states(policy, "upper")  # the first pass of all tries whether it can
    counter = Counter(policy)
    with policy.remembering():
        for _ in range(3):
            states(policy, "upper")
        assert counter.rows == len(SEQUENCES)
        policy.copy("upper", "like it")
        states(policy, "like it")
        assert counter.rows == len(SEQUENCES)
        policy.hidden(TokenBatch.of(SEQUENCES[:1], CPU))  # nothing is worn: read whole
        assert counter.rows == len(SEQUENCES) + 1
    states(policy, "upper")
    assert counter.rows == 2 * len(SEQUENCES) + 1, "it remembers no longer than it was told to"


def test_adapters_that_begin_at_different_layers_do_not_mix_what_they_remember(base: Base) -> None:
    policy = a_policy(base)
    upper, top = in_one_piece(policy, "upper"), in_one_piece(policy, "top")
    with policy.remembering():
        for _ in range(2):
            torch.testing.assert_close(states(policy, "upper"), upper, atol=1e-5, rtol=0)
            torch.testing.assert_close(states(policy, "top"), top, atol=1e-5, rtol=0)


def test_the_same_sequence_twice_in_a_batch_is_read_and_kept_once(base: Base) -> None:
    policy = a_policy(base)
    states(policy, "upper")
    counter = Counter(policy)
    with policy.remembering(), policy.wear("upper"):
        found = policy.hidden(TokenBatch.of([SEQUENCES[0]] * 3, CPU))
        assert cast(Any, policy)._trunk._kept_bytes == 4 * 32 * len(SEQUENCES[0])
    assert counter.rows == 1 and torch.equal(found[0], found[2])


def test_a_reading_that_is_repeated_for_its_gradient_begins_at_the_same_states(base: Base) -> None:
    policy, batch = a_policy(base), TokenBatch.of(SEQUENCES, CPU)
    moved = policy.parameters("upper")

    def read(_: object) -> Tensor:
        with policy.wear("upper"):
            return policy.hidden(batch)[batch.mask].square().sum()

    plain = torch.autograd.grad(read(None), moved)
    with policy.remembering():
        again = torch.autograd.grad(checkpoint(read, None, use_reentrant=False), moved)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_bare_base_begins_where_the_upper_adapters_do(base: Base) -> None:
    policy = a_policy(base)
    policy.drop("top")
    bare = in_one_piece(policy, None)
    torch.testing.assert_close(states(policy, None), bare, atol=1e-5, rtol=0)
    counter = Counter(policy)
    with policy.remembering():
        states(policy, "upper")
        states(policy, None)
    assert counter.rows == len(SEQUENCES)


def test_the_deepest_adapter_can_be_dropped_while_it_is_worn(base: Base) -> None:
    policy = a_policy(base)
    upper = states(policy, "upper")
    states(policy, "whole")
    policy.drop("whole")
    states(policy, None)
    assert torch.equal(states(policy, "upper"), upper)


def test_a_memory_inside_a_memory_is_forgotten_with_the_outer_one(base: Base) -> None:
    policy = a_policy(base)
    states(policy, "upper")
    counter = Counter(policy)
    with policy.remembering():
        with policy.remembering():
            states(policy, "upper")
        states(policy, "upper")
    assert counter.rows == len(SEQUENCES)


def test_what_memory_has_no_room_for_is_read_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = a_policy(base)
    whole = states(policy, "upper")
    one = 4 * 32 * len(SEQUENCES[0])
    monkeypatch.setattr(trunk, "MOST_BYTES", one)
    counter = Counter(policy)
    with policy.remembering():
        for _ in range(2):
            torch.testing.assert_close(states(policy, "upper"), whole, atol=1e-5, rtol=0)
    assert counter.rows == len(SEQUENCES) + len(SEQUENCES) - 1


def test_an_adapter_that_was_saved_is_as_deep_when_it_comes_back(base: Base, tmp_path: Path) -> None:
    policy = a_policy(base)
    policy.save("upper", tmp_path)
    again = Policy(base, device=CPU, dtype=torch.float32)
    again.load("upper", tmp_path)
    assert again.state("upper").keys() == policy.state("upper").keys()
    assert torch.equal(states(again, "upper"), states(policy, "upper"))
