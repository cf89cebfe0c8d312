"""What must hold on CUDA as it does on a CPU: `make gpu-check`. Needs torch, transformers and peft alone."""

from pathlib import Path

import pytest
import torch

from chatbot.basemodel import Base, load_base
from chatbot.models import TokenBatch, load_model, logits_of, merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from chatbot.runner import prepare, runner_for
from data.home import Home
from data.records import Sampling
from tests.jobs import a_job
from trainer.config import RefreshConfig
from trainer.ppo import train_ppo
from trainer.sampler import MergedSampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

CUDA = torch.device("cuda")
PROMPTS = [[3 + i, 40, 50, 60, 70 + i] for i in range(16)]


@pytest.fixture
def base(tiny_directory: Path, home: Home) -> Base:
    return load_base(str(tiny_directory), home, lambda text: None)


def decoded(base: Base, device: torch.device) -> list[list[int]]:
    model = load_model(base, device=device, dtype=torch.float32, attention="sdpa")
    runner = runner_for(prepare(model, "float32"), base.format.end_of_turn)
    jobs = [a_job(prompt, [0], Sampling(temperature=0.0, max_new_tokens=24)) for prompt in PROMPTS]
    for job in jobs:
        runner.add(job)
    while not runner.is_idle:
        runner.step()
    return [job.rows[0].token_ids for job in jobs]


def test_the_gpu_is_chosen_and_computes_in_bfloat16() -> None:
    assert pick_device().type == "cuda"
    assert pick_dtype("auto", pick_device()) == torch.bfloat16


def test_greedy_replies_in_float32_are_those_of_the_cpu(base: Base) -> None:
    assert decoded(base, CUDA) == decoded(base, torch.device("cpu"))


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
            worn = policy.logits(policy.hidden(batch))
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
        reference_finish_rate=0.0,
    )

    assert result.updates == 2, result.stopped
    assert result.history[0]["first_ratio_error"] < 1e-3
    assert abs(result.history[-1]["kl"]) > 0
