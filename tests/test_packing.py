"""Tokens that follow the same tokens are read once, and nobody can tell from what comes out."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, MistralConfig, Qwen2Config, Qwen3Config

from chatbot.basemodel import Base
from chatbot.batch import TokenBatch
from chatbot.packing import Packed, Rectangle, lay_out
from chatbot.policy import Policy
from data.home import Home
from tests.tiny import base_of

CPU = torch.device("cpu")
PROMPT = [1, 80, 90, 100, 110, 2]
REPLIES = [[5, 6, 7, 8, 2], [5, 6, 9], [], [40, 41, 42, 43, 44, 45], [5, 6, 7, 8, 2]]
SEQUENCES = [*([*PROMPT, *reply] for reply in REPLIES), [60, 61]]
DIFFERENT = len(PROMPT) + 5 + 1 + 6 + 2
SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def a_policy(base: Base, *, packs: bool = True, dtype: torch.dtype = torch.float32) -> Policy:
    """With an adapter, `mine`, that changes something."""
    policy = Policy(base, device=CPU, dtype=dtype)
    policy.add("mine", seed=0, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters("mine"):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    cast(Any, policy)._trunk._may_pack &= packs
    return policy


def read(policy: Policy, sequences: list[list[int]], left_pad: int | None = None) -> tuple[Tensor, Tensor]:
    """The states of every real token, (N, D), and the gradients of the adapter in a row."""
    batch = TokenBatch.of(sequences, CPU, left_pad)
    with policy.wear("mine"):
        states = policy.hidden(batch)[batch.mask]
    weights = torch.linspace(-1, 1, states.numel()).view_as(states)  # each token counts otherwise
    (states.float() * weights).sum().backward()
    parameters = policy.parameters("mine")
    return states.detach(), torch.cat([cast(Tensor, p.grad).flatten() for p in parameters])


def test_a_batch_becomes_the_tokens_that_differ_and_comes_back() -> None:
    batch = TokenBatch.of(SEQUENCES, CPU)
    packed = lay_out(batch, True)
    assert isinstance(packed, Packed) and len(packed.first) == DIFFERENT
    assert len(packed.again) == int(batch.mask.sum()) - DIFFERENT
    states = torch.randn(1, DIFFERENT, 4)
    whole = packed.unpack(states)
    assert torch.equal(packed.pack(whole), states)
    ids = packed.unpack(packed.inputs["input_ids"][..., None].float())[..., 0]
    assert torch.equal(ids[batch.mask], batch.ids[batch.mask].float())
    positions = packed.unpack(packed.inputs["position_ids"][..., None].float())[..., 0]
    assert torch.equal(positions[batch.mask], batch.positions[batch.mask].float())


def test_what_goes_back_through_both_is_the_gradient_of_a_plain_selection() -> None:
    packed = lay_out(TokenBatch.of(SEQUENCES, CPU, left_pad=1), True)
    assert isinstance(packed, Packed)
    mask = packed.batch.mask[..., None].double()  # nothing is made of padding
    tokens = torch.randn(1, DIFFERENT, 3, dtype=torch.float64, requires_grad=True)
    cells = torch.randn(*packed.batch.ids.shape, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: packed.unpack(x) * mask, tokens)
    assert torch.autograd.gradcheck(packed.pack, cells)


@pytest.mark.parametrize("sequences", [[[5, 6, 7]], [[5, 6, 7, 8], [6, 7, 8, 9]]], ids=["one", "unlike"])
def test_what_has_nothing_in_common_is_left_as_it_is(sequences: list[list[int]]) -> None:
    assert type(lay_out(TokenBatch.of(sequences, CPU), True)) is Rectangle


@pytest.mark.parametrize("longest_eager", [384, 1], ids=["eager", "sdpa"])
@pytest.mark.parametrize("left_pad", [None, 0, 3])
@pytest.mark.parametrize(
    "config",
    [
        None,
        Qwen2Config(**SMALL),
        Qwen3Config(**SMALL, head_dim=8),
        MistralConfig(**SMALL, sliding_window=None),
    ],
    ids=["llama", "qwen 2", "qwen 3", "mistral"],
)
def test_packed_or_not_states_and_gradients_are_the_same(
    tiny_base: Base,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    left_pad: int | None,
    longest_eager: int,
) -> None:
    monkeypatch.setattr("chatbot.packing._LONGEST_EAGER", longest_eager)
    base = base_of(config, home) if config else tiny_base
    (states, grads), (plain_states, plain_grads) = (
        read(a_policy(base, packs=packs), SEQUENCES, left_pad) for packs in (True, False)
    )
    torch.testing.assert_close(states, plain_states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, plain_grads, atol=1e-5 * float(plain_grads.abs().max()), rtol=1e-4)


def test_in_bfloat16_packing_costs_rounding_and_no_more(tiny_base: Base) -> None:
    wanted = read(a_policy(tiny_base, packs=False), SEQUENCES)
    packed, plain = (
        read(a_policy(tiny_base, packs=packs, dtype=torch.bfloat16), SEQUENCES) for packs in (True, False)
    )
    for exact, one, other in zip(wanted, packed, plain, strict=True):  # the states, then the gradients
        assert (one.float() - exact).norm() <= 1.5 * (other.float() - exact).norm()


def test_only_tokens_that_differ_pass_through_a_linear_map(tiny_base: Base) -> None:
    policy, seen = a_policy(tiny_base), list[int]()
    layer = cast(Any, policy)._trunk.layers[0].mlp

    def count(module: nn.Module, given: Any, said: Tensor) -> None:
        seen.append(said.shape[:-1].numel())

    layer.register_forward_hook(count)
    read(policy, SEQUENCES)
    assert seen == [DIFFERENT]


def test_what_is_remembered_of_packed_sequences_serves_others(tiny_base: Base) -> None:
    policy, plain = (Policy(tiny_base, device=CPU, dtype=torch.float32) for _ in range(2))
    cast(Any, plain)._trunk._may_pack = False
    for each in (policy, plain):
        each.add("mine", seed=0, rank=2, depth=0.5)
    with policy.remembering():
        for sequences in (SEQUENCES, SEQUENCES[2:4], [*SEQUENCES[3:], [7, 8, 9]]):
            found, wanted = (read(each, sequences)[0] for each in (policy, plain))
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [MistralConfig(**SMALL, sliding_window=4), Gemma2Config(**SMALL, head_dim=8)],
    ids=["a window", "another kind"],
)
def test_a_model_whose_tokens_do_not_attend_to_all_before_is_not_packed(home: Home, config: Any) -> None:
    assert not cast(Any, a_policy(base_of(config, home)))._trunk._may_pack


def test_a_model_that_has_one_attention_alone_is_read_with_that(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.packing._LONGEST_EAGER", 1)  # where others take SDPA
    policy = a_policy(base_of(Gemma2Config(**SMALL, head_dim=8), home))
    assert read(policy, SEQUENCES)[0].isfinite().all()
