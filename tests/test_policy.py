"""The base that wears adapters: what is saved comes back, merged equals worn, padding changes nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
    PreTrainedModel,
)

from chatbot.basemodel import Base
from chatbot.batch import TokenBatch
from chatbot.head import ScalarHead
from chatbot.logits import logits_of
from chatbot.models import load_model, merged_model, pick_dtype
from chatbot.policy import Policy
from data.errors import Refused
from data.home import Home
from tests.adapter_files import write_adapter
from tests.learners import delta_norm
from tests.tiny import SMALL, base_of

CPU = torch.device("cpu")
SEQUENCES = [[1, 80, 90, 100, 2], [1, 7, 8, 9, 10, 11, 12, 13], [5]]


def a_policy(base: Base) -> Policy:
    return Policy(base, device=CPU, dtype=torch.float32)


def train_a_little(policy: Policy, name: str) -> None:
    """Random numbers where a night's would be: an adapter that changes something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters(name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def policy(tiny_base: Base) -> Policy:
    """With one adapter that changes something, and its head."""
    made = a_policy(tiny_base)
    made.add("mine", seed=1, rank=4, with_head=True)
    train_a_little(made, "mine")
    made.heads["mine"].mean.fill_(0.3)
    made.heads["mine"].std.fill_(2.0)
    return made


@torch.no_grad()
def logits(policy: Policy, name: str | None, left_pad: int | None = None) -> Tensor:
    """Of every real token of SEQUENCES, one after the other: (N, V)."""
    batch = TokenBatch.of(SEQUENCES, CPU, left_pad)
    with policy.wear(name):
        return torch.cat(list(policy.logits_in_parts(policy.hidden(batch)[batch.mask])))


@torch.no_grad()
def scores(policy: Policy, name: str = "mine", left_pad: int | None = None) -> Tensor:
    """Of every real token of SEQUENCES, one after the other: (N,)."""
    return read(policy, name, TokenBatch.of(SEQUENCES, CPU, left_pad))


def read(policy: Policy, name: str, batch: TokenBatch) -> Tensor:
    with policy.wear(name):
        return cast(Tensor, policy.heads[name](policy.hidden(batch)[batch.mask]))


@torch.no_grad()
def plain_logits(base: Base, adapter: Path | None) -> Tensor:
    """What a plain model says of every real token of SEQUENCES, each passed by itself."""
    model = merged_model(base, adapter, device=CPU, dtype=torch.float32)
    each = [model.get_decoder()(input_ids=torch.tensor([s])).last_hidden_state[0] for s in SEQUENCES]
    return logits_of(model, torch.cat(each))


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed(tiny_base: Base) -> None:
    policy = a_policy(tiny_base)
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        policy.add(name, seed=seed)
    assert delta_norm(policy, "a") == 0
    assert torch.equal(logits(policy, "a"), logits(policy, None))
    a, b, c = (policy.parameters(name)[0] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_adding_an_adapter_draws_nothing_from_the_global_generator(policy: Policy) -> None:
    torch.manual_seed(3)
    policy.add("new", seed=1, with_head=True)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


def test_wearing_none_is_the_plain_base(policy: Policy, tiny_base: Base) -> None:
    torch.testing.assert_close(logits(policy, None), plain_logits(tiny_base, None), atol=1e-4, rtol=0)
    assert (logits(policy, "mine") - logits(policy, None)).abs().max() > 0.01


def test_an_adapter_comes_back_as_it_was_saved(policy: Policy, tiny_base: Base, tmp_path: Path) -> None:
    policy.save("mine", tmp_path)
    again = a_policy(tiny_base)
    again.load("theirs", tmp_path)
    assert torch.equal(logits(again, "theirs"), logits(policy, "mine"))
    settings = cast(Any, again)._peft.peft_config["theirs"]
    assert (settings.r, settings.lora_alpha) == (4, 8)
    assert delta_norm(again, "theirs") == delta_norm(policy, "mine") > 0


def test_an_adapter_named_as_a_layer_is_moves_nothing_but_itself(policy: Policy) -> None:
    policy.add("self_attn", seed=2, rank=2)
    own = {id(parameter) for parameter in policy.parameters("self_attn")}
    assert own and not own & {id(parameter) for parameter in policy.parameters("mine")}
    assert len(own) == len(policy.state("self_attn"))


def test_a_loaded_adapter_can_be_trained(policy: Policy, tiny_base: Base, tmp_path: Path) -> None:
    policy.save("mine", tmp_path)
    policy.load("again", tmp_path, with_head=True)
    score = read(policy, "again", TokenBatch.of(SEQUENCES, CPU)).sum()
    (score + policy.heads["again"].of_length(torch.tensor(5))).backward()
    gradients = [parameter.grad for parameter in policy.parameters("again")]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    assert all(parameter.grad is None for parameter in policy.parameters("mine"))


def test_a_head_comes_back_with_its_normalisation(policy: Policy, tiny_base: Base, tmp_path: Path) -> None:
    policy.save("mine", tmp_path)
    again = a_policy(tiny_base)
    again.load("judge", tmp_path, with_head=True)
    assert (scores(again, "judge") - scores(policy)).abs().max() < 1e-4
    assert float(again.heads["judge"].mean) == pytest.approx(0.3)
    assert float(again.heads["judge"].std) == 2.0


def test_a_reward_model_without_its_head_is_refused(policy: Policy, tmp_path: Path) -> None:
    policy.save("mine", tmp_path)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(Refused, match=r"has no head\.safetensors - it is no reward model"):
        policy.load("judge", tmp_path, with_head=True)
    assert policy.adapters == ["mine"]
    policy.load("judge", tmp_path)  # as a plain adapter it is whole


def test_merged_equals_worn(policy: Policy, tiny_base: Base, tmp_path: Path) -> None:
    policy.save("mine", tmp_path)
    merged = plain_logits(tiny_base, tmp_path)
    torch.testing.assert_close(logits(policy, "mine"), merged, atol=1e-4, rtol=0)


def test_an_adapter_written_by_others_merges_with_its_own_scale(tiny_base: Base, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "foreign", tiny_base.config, size=0.1)
    policy = a_policy(tiny_base)
    policy.load("foreign", adapter)
    merged = plain_logits(tiny_base, adapter)
    torch.testing.assert_close(logits(policy, "foreign"), merged, atol=1e-4, rtol=0)


def test_write_merged_is_the_merged_model_of_what_is_saved(
    policy: Policy, tiny_base: Base, tmp_path: Path
) -> None:
    policy.save("mine", tmp_path)
    target = load_model(tiny_base, device=CPU, dtype=torch.float32)
    policy.write_merged("mine", target)
    saved = merged_model(tiny_base, tmp_path, device=CPU, dtype=torch.float32)
    for (name, ours), theirs in zip(target.state_dict().items(), saved.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_write_merged_may_be_repeated_without_drift(policy: Policy, tiny_base: Base) -> None:
    target = load_model(tiny_base, device=CPU, dtype=torch.float32)
    policy.write_merged("mine", target)
    once = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    policy.write_merged("mine", target)
    assert all(torch.equal(tensor, once[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("left_pad", [0, 17])
def test_padding_changes_neither_logits_nor_scores(policy: Policy, left_pad: int) -> None:
    torch.testing.assert_close(logits(policy, "mine", left_pad), logits(policy, "mine"), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores(policy, left_pad=left_pad), scores(policy), atol=1e-4, rtol=0)


def test_a_sequence_scores_alone_as_in_a_batch(policy: Policy) -> None:
    with torch.no_grad():
        alone = torch.cat([read(policy, "mine", TokenBatch.of([ids], CPU)) for ids in SEQUENCES])
    torch.testing.assert_close(alone, scores(policy), atol=1e-4, rtol=0)


def test_long_sequences_score_as_short_ones_though_attention_is_another(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_a_little(policy, "mine")
    eager = scores(policy)
    monkeypatch.setattr("chatbot.packing._LONGEST_EAGER", 1)
    assert torch.allclose(scores(policy), eager, atol=1e-5)


def test_a_copy_is_equal_and_goes_its_own_way(policy: Policy) -> None:
    policy.copy("mine", "value")
    assert torch.equal(logits(policy, "value"), logits(policy, "mine"))
    assert torch.equal(scores(policy, "value"), scores(policy))
    before = logits(policy, "mine")
    train_a_little(policy, "value")
    assert torch.equal(logits(policy, "mine"), before)
    assert not torch.equal(logits(policy, "value"), before)


def test_a_name_that_is_dropped_and_used_again_is_the_new_adapter(policy: Policy, tmp_path: Path) -> None:
    policy.save("mine", tmp_path)
    policy.add("other", seed=5)
    wanted = logits(policy, "mine")
    policy.drop("mine")
    assert "mine" not in policy.adapters and "mine" not in policy.heads
    policy.load("mine", tmp_path)
    assert torch.equal(logits(policy, "mine"), wanted)


def test_what_was_kept_is_brought_back(policy: Policy) -> None:
    before, kept = logits(policy, "mine"), policy.keep("mine")
    train_a_little(policy, "mine")
    assert not torch.equal(logits(policy, "mine"), before)
    policy.bring_back("mine", kept)
    assert torch.equal(logits(policy, "mine"), before)


def test_only_what_is_worn_learns(policy: Policy) -> None:
    policy.add("other", seed=5, with_head=True)
    read(policy, "other", TokenBatch.of(SEQUENCES, CPU)).sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters("mine"))
    assert policy.heads["other"].weight.grad is not None


@torch.no_grad()
def test_each_change_of_adapters_is_whole(policy: Policy, tiny_base: Base) -> None:
    policy.add("other", seed=5)
    train_a_little(policy, "other")
    ids = torch.tensor(SEQUENCES[:1])
    for name in ("mine", None, "other", None, "mine", "other"):
        plain = load_model(tiny_base, device=CPU, dtype=torch.float32)
        if name:
            policy.write_merged(name, plain)
        torch.testing.assert_close(logits(policy, name)[: ids.shape[1]], plain(ids).logits[0])


def test_others_may_learn_after_one_was_dropped(policy: Policy) -> None:
    policy.add("other", seed=5, with_head=True)
    policy.add("third", seed=6, with_head=True)
    policy.drop("other")
    for name in ("mine", "third"):
        read(policy, name, TokenBatch.of(SEQUENCES, CPU)).sum().backward()
        assert sum(parameter.grad is not None for parameter in policy.parameters(name)) > 20


def test_adapters_are_worn_one_at_a_time(policy: Policy) -> None:
    with pytest.raises(AssertionError, match="stands inside"), policy.wear(None), policy.wear("mine"):
        pass
    with policy.wear("mine"):  # and a failure inside leaves nothing on
        pass


def test_a_base_that_nothing_can_be_merged_into_is_refused(home: Home) -> None:
    base = base_of(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256), home)
    with pytest.raises(Refused, match="keeps its weights transposed"):
        Policy(base, device=CPU, dtype=torch.float32).add("policy", seed=0)


def test_a_last_norm_in_float32_meets_a_head_in_bfloat16(home: Home) -> None:
    """As CUDA's autocast computes a plain LayerNorm; that of a CPU leaves it in bfloat16."""
    base = base_of(GPTNeoXConfig(**SMALL), home)
    policy = Policy(base, device=CPU, dtype=torch.bfloat16)
    policy.add("policy", seed=0)
    norms = [part for part in policy._plain.get_decoder().children() if isinstance(part, torch.nn.LayerNorm)]
    norms[-1].register_forward_hook(lambda module, inputs, states: states.float())
    assert torch.isfinite(logits(policy, "policy")).all()


@pytest.mark.parametrize("depth", [1.0, 0.5])
def test_a_model_whose_layers_take_no_adapter_chats_but_cannot_learn(home: Home, depth: float) -> None:
    config = MambaConfig(vocab_size=259, hidden_size=32, state_size=4, num_hidden_layers=2)
    policy = Policy(base_of(config, home), device=CPU, dtype=torch.float32)
    with pytest.raises(Refused, match="chats but cannot learn: PEFT adds no adapter to its layers"):
        policy.add("policy", seed=0, depth=depth)


def test_the_delta_norm_is_that_of_the_full_matrices(policy: Policy, tiny_base: Base) -> None:
    target = load_model(tiny_base, device=CPU, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    policy.write_merged("mine", target)
    changes = {id(t): (t - before[name]).double() for name, t in target.state_dict().items()}
    total = sum(float(change.square().sum()) for change in changes.values())
    assert delta_norm(policy, "mine") == pytest.approx(total**0.5, rel=1e-4)


def test_a_folded_head_scores_the_same() -> None:
    head = ScalarHead(32, torch.Generator().manual_seed(0))
    head.mean.fill_(1.5)
    head.std.fill_(0.25)
    head.usual_length.fill_(2.0)
    with torch.no_grad():
        head.length.fill_(-1.5)
    hidden, tokens = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)), torch.arange(1, 7)
    before = head(hidden), head.of_length(tokens)
    head.fold()
    torch.testing.assert_close((head(hidden), head.of_length(tokens)), before)
    assert (float(head.mean), float(head.std)) == (0.0, 1.0)


def test_precision_is_what_was_asked_for() -> None:
    assert pick_dtype("float32", CPU) is torch.float32
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16


@pytest.mark.parametrize("major, dtype", [(7, torch.float32), (8, torch.bfloat16)])
def test_a_gpu_that_emulates_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, major: int, dtype: torch.dtype
) -> None:
    """A T4 is of capability 7.5; it makes bfloat16 tensors without complaint."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda *_: True)
    cuda = torch.device("cuda")
    assert (pick_dtype("auto", cuda), pick_dtype("bfloat16", cuda)) == (dtype, torch.bfloat16)


def test_on_cuda_attention_needs_no_plan_for_each_length(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, device: self)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        load_model(tiny_base, device=torch.device("cuda"), dtype=torch.float32)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_an_adapter_is_read_to_where_its_model_is(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cuda` is this process's own GPU, but safetensors takes it for the first one."""
    adapter = write_adapter(tmp_path / "adapter", tiny_base.config)
    model = load_model(tiny_base, device=CPU, dtype=torch.float32)
    monkeypatch.setattr("chatbot.models.load_model", lambda base, **rest: model)
    merged = merged_model(tiny_base, adapter, device=torch.device("cuda"), dtype=torch.float32)
    assert merged.device == CPU
