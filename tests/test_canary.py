"""trainer/canary.py: eight prompts whose log-probabilities tell this version from any other."""

from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import get_torch_context_manager_or_global_device

from chatbot.basemodel import Base
from chatbot.models import merged_model
from tests.learners import a_learner
from tests.nights import PRACTICE
from tests.plain_ppo import PlainModel
from trainer import canary, sampler
from trainer.canary import canaries, exact_format


def test_a_canary_is_what_a_slow_model_says_of_the_version(tiny_base: Base, tmp_path: Path) -> None:
    policy = a_learner(tiny_base)
    policy.save("policy", tmp_path)
    slow = PlainModel(tiny_base, policy.state("policy"), None)
    made = canaries(tiny_base, tmp_path, PRACTICE, seed=0)
    assert len(made) == 8
    for told, prompt in zip(made, PRACTICE, strict=False):
        ids, start = told["ids"], told["reply_start"]
        assert ids[:start] == tiny_base.format.encode(prompt.messages)
        assert 1 <= len(ids) - start <= 24
        logprobs = [x.item() for x in slow.logprobs(ids[:start], ids[start:], 1.0)]
        assert told["logprob"] == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-3)


def test_another_version_would_not_pass_for_it(tiny_base: Base, tmp_path: Path) -> None:
    policy = a_learner(tiny_base)
    policy.save("policy", tmp_path)
    bare = PlainModel(tiny_base, {}, None)
    off = []
    for told in canaries(tiny_base, tmp_path, PRACTICE, seed=0):
        ids, start = told["ids"], told["reply_start"]
        logprobs = [x.item() for x in bare.logprobs(ids[:start], ids[start:], 1.0)]
        off.append(abs(told["logprob"] - sum(logprobs) / len(logprobs)))
    assert min(off) > 0.01


def test_the_weights_are_in_memory_once(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_learner(tiny_base).save("policy", tmp_path)
    monkeypatch.setattr(sampler, "prepare", lambda *_: pytest.fail("the weights were copied"))
    assert len(canaries(tiny_base, tmp_path, PRACTICE, seed=0)) == 8


def test_the_same_seed_gives_the_same_canaries(tiny_base: Base, tmp_path: Path) -> None:
    a_learner(tiny_base).save("policy", tmp_path)
    one, two, other = (canaries(tiny_base, tmp_path, PRACTICE[:2], seed=seed) for seed in (1, 1, 2))
    assert one == two != other


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("on_gpu", "on_cpu", "wanted"),
    [(1, 0, (CUDA, torch.float32)), (0, 1, (CPU, torch.float32)), (0, 0, (CUDA, torch.bfloat16))],
)
def test_a_version_is_read_in_float32_wherever_there_is_room_for_it(
    tiny_base: Base,
    monkeypatch: pytest.MonkeyPatch,
    on_gpu: int,
    on_cpu: int,
    wanted: tuple[torch.device, torch.dtype],
) -> None:
    model = merged_model(tiny_base, None, device=CPU, dtype=torch.float32)
    needed = int(1.25 * sum(parameter.nbytes for parameter in model.parameters()))
    more = {"cuda": on_gpu, "cpu": on_cpu}
    monkeypatch.setattr(canary, "pick_device", lambda: CUDA)
    monkeypatch.setattr(canary, "pick_dtype", lambda precision, device: torch.bfloat16)
    monkeypatch.setattr(canary, "free_bytes", lambda device: needed + more[device.type])
    assert exact_format(tiny_base, four_bit=False) == wanted
    assert exact_format(tiny_base, four_bit=True)[1] == torch.float32, "it takes less"


def test_what_is_read_on_a_gpu_never_stands_in_the_machines_own_memory(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_onto: list[torch.device] = []

    def load(*_: object, device: torch.device, **__: object) -> None:
        loaded_onto.append(get_torch_context_manager_or_global_device())
        raise InterruptedError

    meta = torch.device("meta")
    monkeypatch.setattr(canary, "exact_format", lambda base, four_bit: (meta, torch.float32))
    monkeypatch.setattr(canary, "merged_model", load)
    with pytest.raises(InterruptedError):
        canaries(tiny_base, tmp_path, PRACTICE, seed=0)
    assert loaded_onto == [meta]


def test_canaries_that_had_no_room_for_float32_say_so(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_learner(tiny_base).save("policy", tmp_path)
    exact = canaries(tiny_base, tmp_path, PRACTICE, seed=0)
    monkeypatch.setattr(canary, "pick_dtype", lambda precision, device: torch.bfloat16)
    monkeypatch.setattr(canary, "free_bytes", lambda device: 0)
    rough = canaries(tiny_base, tmp_path, PRACTICE, seed=0)
    assert all(told["bfloat16"] for told in rough) and not any("bfloat16" in told for told in exact)
