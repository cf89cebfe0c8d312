"""A base in four bits: NF4 weights that learn nothing, adapters beside them, and a whole night on top."""

import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatbot.basemodel import Base, load_base
from chatbot.batch import TokenBatch
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.following import load_verified
from chatbot.fourbit import Beside, is_four_bit, set_packing
from chatbot.logits import logits_of
from chatbot.manifest import read_manifest
from chatbot.models import load_model, merged_model
from chatbot.padded import TransformersModel
from chatbot.policy import Policy
from chatbot.serving import trainer_command
from data import runs
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.records import Sampling
from tests.learners import CPU, delta_norm, shake
from tests.nights import PRACTICE, a_night
from tests.tiny import make_tiny_model
from trainer.canary import canaries
from trainer.forward import Reply, reply_scores

SEQUENCES = [[1, 80, 90, 100, 2], [1, 7, 8, 9, 10, 11, 12, 13], [5]]


@pytest.fixture(scope="session")
def wide_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, wide enough that its rows are whole blocks of 64."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)


@pytest.fixture
def wide_base(wide_directory: Path, home: Home) -> Base:
    return load_base(str(wide_directory), home, lambda text: None)


@pytest.fixture
def policy(wide_base: Base) -> Policy:
    """On a base in four bits, with one adapter that changes something, and its head."""
    made = Policy(wide_base, device=CPU, dtype=torch.float32, four_bit=True)
    made.add("mine", seed=1, rank=4, with_head=True)
    shake(made, "mine")
    return made


@torch.no_grad()
def logits(model: Policy | nn.Module, name: str | None = None) -> Tensor:
    """Of every real token of SEQUENCES, through the training copy or a generating one: (N, V)."""
    batch = TokenBatch.of(SEQUENCES, CPU)
    if isinstance(model, Policy):
        with model.wear(name):
            return torch.cat(list(model.logits_in_parts(model.hidden(batch)[batch.mask])))
    hidden = model.get_decoder()(  # type: ignore[operator]
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions
    )
    return logits_of(model, hidden.last_hidden_state[batch.mask])  # type: ignore[arg-type]


def rounded_weights(policy: Policy) -> dict[str, Tensor]:
    """What the NF4 weights of a policy stand for, by the path of their layer."""
    from bitsandbytes.functional import dequantize_4bit

    layers = {
        path: module
        for path, module in policy._plain.named_modules()
        if path.endswith(".base_layer") and is_four_bit(module)
    }
    return {
        path.removesuffix(".base_layer"): dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        for path, layer in layers.items()
    }


def linear_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if is_four_bit(m) and not isinstance(m, Beside)]


def test_every_linear_layer_of_the_base_is_in_four_bits_and_frozen(wide_base: Base) -> None:
    whole = load_model(wide_base, device=CPU, dtype=torch.float32)
    model = load_model(wide_base, device=CPU, dtype=torch.float32, four_bit=True)
    assert not linear_layers(whole)
    assert len(linear_layers(model)) == 2 * 7  # all but the output layer
    assert not any(parameter.requires_grad for parameter in model.parameters())
    bits = sum(p.numel() for layer in linear_layers(model) for p in layer.parameters()) * 8
    weights = [m for m in whole.get_decoder().modules() if isinstance(m, nn.Linear)]
    assert bits == 4 * sum(m.weight.numel() for m in weights)


def test_its_weights_are_those_of_the_base_but_for_rounding(policy: Policy, wide_base: Base) -> None:
    whole = dict(load_model(wide_base, device=CPU, dtype=torch.float32).named_modules())
    small = rounded_weights(policy)
    assert len(small) == 14
    for path, weight in small.items():
        original = cast(Tensor, whole[path].weight)
        assert 0 < float((weight - original).norm() / original.norm()) < 0.12


def test_a_layer_whose_rows_are_not_whole_blocks_stays_as_it_is(tiny_base: Base, tmp_path: Path) -> None:
    """Of the tiny model, 32 wide inside and 64 in its MLP, only down_proj is made smaller."""
    policy = Policy(tiny_base, device=CPU, dtype=torch.float32, four_bit=True)
    policy.add("mine", seed=1, rank=4)
    shake(policy, "mine")
    assert sorted(rounded_weights(policy)) == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    policy.save("mine", tmp_path)
    copy = merged_model(tiny_base, tmp_path, device=CPU, dtype=torch.float32, four_bit=True)
    torch.testing.assert_close(logits(copy), logits(policy, "mine"), atol=1e-4, rtol=0)


def test_without_bitsandbytes_a_sentence_says_what_to_do(
    wide_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Refused, match=r'needs bitsandbytes.* - run "pip install bitsandbytes", or leave'):
        Policy(wide_base, device=CPU, dtype=torch.float32, four_bit=True)
    Policy(wide_base, device=CPU, dtype=torch.float32).add("policy", seed=0)


def test_a_generating_copy_says_what_the_worn_adapter_says(
    policy: Policy, wide_base: Base, tmp_path: Path
) -> None:
    policy.save("mine", tmp_path)
    loaded = merged_model(wide_base, tmp_path, device=CPU, dtype=torch.float32, four_bit=True)
    target = merged_model(wide_base, None, device=CPU, dtype=torch.float32, four_bit=True)
    bare = logits(target)
    policy.write_merged("mine", target)
    for copy in (loaded, target):
        torch.testing.assert_close(logits(copy), logits(policy, "mine"), atol=1e-4, rtol=0)
    assert (logits(target) - bare).abs().max() > 0.1


def test_a_generating_copy_may_be_rewritten_without_drift(policy: Policy, wide_base: Base) -> None:
    target = merged_model(wide_base, None, device=CPU, dtype=torch.float32, four_bit=True)
    policy.write_merged("mine", target)
    once = logits(target)
    policy.add("other", seed=3, rank=8)
    shake(policy, "other")
    for name in ("other", "mine"):
        policy.write_merged(name, target)
    assert torch.equal(logits(target), once)
    assert not any(isinstance(m.layer, Beside) for m in target.modules() if isinstance(m, Beside))


def test_a_copy_of_another_format_is_not_written_to(policy: Policy, wide_base: Base) -> None:
    whole = merged_model(wide_base, None, device=CPU, dtype=torch.float32)
    with pytest.raises(AssertionError, match="is of another format"):
        policy.write_merged("mine", whole)


def test_an_adapter_saved_in_four_bits_is_a_plain_one(
    policy: Policy, wide_base: Base, tmp_path: Path
) -> None:
    policy.save("mine", tmp_path)
    again = Policy(wide_base, device=CPU, dtype=torch.float32)
    again.load("mine", tmp_path, with_head=True)
    assert delta_norm(again, "mine") == pytest.approx(delta_norm(policy, "mine"))
    four_bit = Policy(wide_base, device=CPU, dtype=torch.float32, four_bit=True)
    four_bit.load("mine", tmp_path, with_head=True)
    assert torch.equal(logits(four_bit, "mine"), logits(policy, "mine"))


def gradients(policy: Policy) -> list[Tensor]:
    for parameter in policy.parameters("mine"):
        parameter.grad = None
    reply_scores(policy, "mine", [Reply(ids[:1], ids[1:], False) for ids in SEQUENCES]).sum().backward()
    return [parameter.grad.clone() for parameter in policy.parameters("mine") if parameter.grad is not None]


def test_gradients_are_those_of_the_same_weights_in_full(policy: Policy, wide_base: Base) -> None:
    """Against a plain policy whose weights are the NF4 ones, dequantised."""
    plain = Policy(wide_base, device=CPU, dtype=torch.float32)
    modules = dict(plain._plain.named_modules())
    with torch.no_grad():
        for path, weight in rounded_weights(policy).items():
            cast(Tensor, modules[path].weight).copy_(weight)
    plain.add("mine", seed=1, rank=4, with_head=True)
    shake(plain, "mine")
    for four_bit, full in zip(gradients(policy), gradients(plain), strict=True):
        torch.testing.assert_close(four_bit, full, atol=1e-3, rtol=1e-3)


def test_a_forward_pass_without_gradients_leaves_those_of_the_next_alone(wide_base: Base) -> None:
    """Where bitsandbytes packs its weights for a CPU's bfloat16 kernel, no gradient passes any more."""
    policy = Policy(wide_base, device=CPU, dtype=torch.bfloat16, four_bit=True)
    policy.add("mine", seed=1, rank=4, with_head=True)
    shake(policy, "mine")
    before = gradients(policy)
    logits(policy, "mine")
    logits(policy, None)
    assert all(torch.equal(a, b) for a, b in zip(gradients(policy), before, strict=True))


def test_a_packed_copy_says_what_an_unpacked_one_says(wide_base: Base) -> None:
    packed = merged_model(wide_base, None, device=CPU, dtype=torch.bfloat16, four_bit=True)
    plain = merged_model(wide_base, None, device=CPU, dtype=torch.bfloat16, four_bit=True)
    set_packing(plain, False)
    assert (logits(packed) - logits(plain)).abs().mean() < 0.05 * logits(plain).std()
    is_packed = [
        hasattr(layer.weight.quant_state, "packing_format_for_cpu") for layer in linear_layers(packed)
    ]
    assert len(set(is_packed)) == 1
    assert not any(hasattr(x.weight.quant_state, "packing_format_for_cpu") for x in linear_layers(plain))


def the_model(engine: Engine, version: str) -> PreTrainedModel:
    """What decodes it: transformers itself, since nothing can be merged into four bits."""
    weights = engine._loaded[version].weights
    assert isinstance(weights, TransformersModel)
    return weights.model


def test_an_engine_in_four_bits_answers(wide_base: Base) -> None:
    engine = Engine(wide_base, precision="float32", four_bit=True)
    engine.start()
    ask = [{"role": "user", "content": "Hello there."}]
    generation = engine.submit(ask, sampling=Sampling(temperature=0, max_new_tokens=8))
    assert generation.wait(60) and generation.replies[0].tokens > 0
    assert linear_layers(the_model(engine, "base"))
    engine.close()


def test_the_trainer_beside_a_four_bit_server_learns_in_four_bits() -> None:
    assert "--four-bit" in trainer_command(ServeConfig(four_bit=True))
    assert "--four-bit" not in trainer_command(ServeConfig())


def test_the_canaries_of_a_four_bit_version_are_of_a_four_bit_build(
    policy: Policy, wide_base: Base, tmp_path: Path
) -> None:
    policy.save("mine", tmp_path)
    small, whole = (canaries(wide_base, tmp_path, PRACTICE, seed=0, four_bit=x) for x in (True, False))
    assert [c["four_bit"] for c in small] == [True] * 8
    assert not any(c.get("four_bit", False) for c in whole)
    assert [c["logprob"] for c in small] != [c["logprob"] for c in whole]


def test_a_night_in_four_bits_publishes_what_a_four_bit_server_loads(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    """The tiny model, whose down_proj alone is in four bits, can be taught."""
    run = a_night(ranked, home, tiny_base, four_bit=True)
    assert run.state == "published", run.reason
    assert all(canary["four_bit"] for canary in read_manifest(home.adapters / "v000001").canary)
    engine = Engine(tiny_base, precision="float32", four_bit=True)  # not started: it loads and compares
    load_verified(ranked, home, engine, "v000001")
    assert any(isinstance(m, Beside) for m in the_model(engine, "v000001").modules())


def test_a_night_on_a_base_whose_every_layer_is_in_four_bits_goes_to_its_end(
    ranked: Database, home: Home, wide_base: Base
) -> None:
    run = a_night(ranked, home, wide_base, four_bit=True, updates=2, reward_epochs=1, gate_prompts=4)
    assert run.state in ("published", "refused"), run.reason
    kls = [m.value for m in runs.metrics(ranked, run.id, "ppo") if m.name == "kl"]
    assert kls[0] == pytest.approx(0, abs=1e-4) and kls[-1] > 0.01
