"""What must hold on CUDA as it does on a CPU: `make gpu-check`. Needs torch, transformers and peft alone."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from chatbot.basemodel import Base, load_base
from chatbot.engine import Engine
from chatbot.kernels import Format
from chatbot.memory import bytes_to_keep, free_bytes, give_back
from chatbot.models import TokenBatch, load_model, logits_of, merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from chatbot.runner import prepare, runner_for
from data.home import Home
from data.records import Sampling
from tests.jobs import a_job
from trainer.config import RefreshConfig
from trainer.endings import Endings
from trainer.ppo import train_ppo
from trainer.sampler import MergedSampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

CUDA = torch.device("cuda")
PROMPTS = [[3 + i, 40, 50, 60, 70 + i] for i in range(16)]
LONG = [3 + (7 * i) % 250 for i in range(900)]


@pytest.fixture
def base(tiny_directory: Path, home: Home) -> Base:
    return load_base(str(tiny_directory), home, lambda text: None)


def decoded(base: Base, device: torch.device, dtype: torch.dtype = torch.float32) -> list[list[int]]:
    """Short prompts, then a long one with three replies, which is read in pieces beside them."""
    model = load_model(base, device=device, dtype=dtype)
    form: Format = "float32" if dtype == torch.float32 else "bfloat16"
    runner = runner_for(prepare(model, form), base.format.end_of_turn)
    greedy = Sampling(temperature=0.0, max_new_tokens=24)
    jobs = [a_job(prompt, [0], greedy) for prompt in PROMPTS]
    for job in jobs:
        runner.add(job)
    runner.step()
    jobs.append(a_job(LONG, [0, 1, 2], greedy))
    runner.add(jobs[-1])
    while not runner.is_idle:
        runner.step()
    return [row.token_ids for job in jobs for row in job.rows]


def test_the_gpu_is_chosen_and_computes_in_bfloat16_where_it_can() -> None:
    assert pick_device().type == "cuda"
    can = torch.cuda.get_device_properties(0).major >= 8
    assert pick_dtype("auto", pick_device()) == (torch.bfloat16 if can else torch.float32)


def test_greedy_replies_in_float32_are_those_of_the_cpu(base: Base) -> None:
    assert decoded(base, CUDA) == decoded(base, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_attention_is_fused_and_none_is_planned_for_a_length(base: Base, dtype: torch.dtype) -> None:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        assert all(decoded(base, CUDA, dtype))
    load_model(base, device=CUDA, dtype=dtype)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_engine_goes_on_from_its_replies_while_versions_change(base: Base, tmp_path: Path) -> None:
    policy = Policy(base, device=CUDA, dtype=torch.bfloat16)
    policy.add("policy", seed=1)
    policy.save("policy", tmp_path / "saved")
    engine = Engine(base)
    engine.start()
    said = [{"role": "user", "content": "Hello there. " * 20}]
    for name in ("v000001", "v000002", "v000003"):
        engine.load(name, tmp_path / "saved")
        engine.serve(name)
        asked = engine.submit(
            said, replies=4, sampling=Sampling(temperature=0.7, top_p=0.9, max_new_tokens=30)
        )
        assert asked.wait(60) and {r.finish_reason for r in asked.replies} <= {"stop", "length"}
        said += [
            {"role": "assistant", "content": asked.replies[0].text},
            {"role": "user", "content": "And then?"},
        ]
    ids = [*asked.prompt, *asked.replies[0].token_ids]
    mean = sum(asked.replies[0].logprobs) / asked.replies[0].tokens
    assert engine.mean_logprob(engine.version, ids, len(asked.prompt)) == pytest.approx(mean, abs=0.1)
    assert engine.known_versions == ["base", "v000003"]
    engine.close()


def test_memory_that_is_given_back_is_there_for_other_processes() -> None:
    held = torch.empty(2**30, dtype=torch.uint8, device=CUDA)
    free = free_bytes(CUDA)
    del held
    give_back(CUDA)
    assert free_bytes(CUDA) - free > 2**29 and bytes_to_keep(CUDA, 0) >= 2**28


@torch.no_grad()
def test_replies_to_one_prompt_say_packed_what_each_says_alone(base: Base) -> None:
    policy = Policy(base, device=CUDA, dtype=torch.float32)
    policy.add("mine", seed=1)
    replies = [[*LONG[:300], *range(10 * i, 10 * i + 5 + i)] for i in range(1, 5)]
    with policy.wear("mine"):
        together = policy.hidden(TokenBatch.of(replies, CUDA))
        alone = [policy.hidden(TokenBatch.of([reply], CUDA))[0] for reply in replies]
    for states, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(states[: len(wanted)], wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_generating_copy_says_what_the_worn_adapter_says(
    base: Base, tmp_path: Path, four_bit: bool
) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    policy = Policy(base, device=CUDA, dtype=torch.float32, four_bit=four_bit)
    policy.add("policy", seed=1)
    with torch.no_grad():
        for parameter in policy.parameters("policy"):
            parameter.normal_(std=0.05)
        policy.save("policy", tmp_path / "saved")
        batch = TokenBatch.of(PROMPTS, CUDA)
        with policy.wear("policy"):
            worn = torch.cat(list(policy.logits_in_parts(policy.hidden(batch))))
        merged = merged_model(base, tmp_path / "saved", device=CUDA, dtype=torch.float32, four_bit=four_bit)
        hidden = merged.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state

    assert torch.allclose(worn, logits_of(merged, hidden), atol=1e-3)


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_updates_of_ppo_move_the_policy_and_stay_finite(
    base: Base, precision: str, four_bit: bool
) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    policy = Policy(base, device=CUDA, dtype=pick_dtype(precision, CUDA), four_bit=four_bit)
    policy.add("policy", seed=0)
    for name in ("reward-0", "judge"):
        policy.add(name, seed=1, with_head=True)
    config = RefreshConfig(updates=2, prompts_per_update=8, minibatch=4, ppo_lr=1e-3, warmup_updates=1)
    merged = merged_model(base, None, device=CUDA, dtype=pick_dtype(precision, CUDA), four_bit=four_bit)

    result = train_ppo(
        policy,
        MergedSampler(merged),
        PROMPTS,
        config,
        sampling=Sampling(config.temperature, 1.0, 16),
        reference=None,
        starts_at_reference=True,
        endings=Endings(),
    )

    assert result.updates == 2, result.stopped
    assert result.history[0]["first_ratio_error"] < 1e-3
    assert abs(result.history[-1]["kl"]) > 0
