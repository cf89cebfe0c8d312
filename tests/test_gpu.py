"""What must hold on CUDA as it does on a CPU: `make gpu-check`.

Needs torch, transformers, peft and pytest alone: `make gpu-check GPU_PYTHON=python3` installs nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPTNeoXConfig, PreTrainedModel

from chatbot.basemodel import Base, load_base
from chatbot.batch import TokenBatch
from chatbot.engine import Engine
from chatbot.kernels import Format
from chatbot.logits import logits_of
from chatbot.memory import bytes_to_keep, free_bytes, give_back
from chatbot.models import load_model, merged_model, pick_device, pick_dtype
from chatbot.policy import Policy
from chatbot.runner import prepare, runner_for
from data.home import Home
from data.records import Prompt, Sampling
from tests.jobs import a_job
from tests.learners import ranked
from tests.tiny import base_of
from trainer.canary import canaries, exact_format
from trainer.config import RefreshConfig
from trainer.forward import TOKENS_PER_PASS, logprobs_of
from trainer.ppo import train_ppo
from trainer.result import PolicyResult
from trainer.reward import normalise, scores_of, tokenise, train_reward
from trainer.rollout import Roles, Task
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


def decoded(base: Base, model: PreTrainedModel) -> list[list[int]]:
    """Short prompts, then a long one with three replies, which is read in pieces beside them."""
    form: Format = "float32" if model.dtype == torch.float32 else "bfloat16"
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
    here, there = (load_model(base, device=d, dtype=torch.float32) for d in (CUDA, torch.device("cpu")))
    assert decoded(base, here) == decoded(base, there)


def test_a_model_of_another_kind_says_in_float32_what_it_says_on_the_cpu(home: Home) -> None:
    other = base_of(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=1024), home)
    here, there = (load_model(other, device=d, dtype=torch.float32) for d in (CUDA, torch.device("cpu")))
    assert decoded(other, here) == decoded(other, there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_attention_is_fused_and_none_is_planned_for_a_length(base: Base, dtype: torch.dtype) -> None:
    model = load_model(base, device=CUDA, dtype=dtype)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        assert all(decoded(base, model))
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
        sampling = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=30)
        asked = engine.submit(said, replies=4, sampling=sampling, seeds=[1, 2, 3, 4])
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
    free, _ = torch.cuda.mem_get_info()
    del held
    give_back(CUDA)
    assert torch.cuda.mem_get_info()[0] - free > 2**29
    assert free_bytes(CUDA) > 2**29 and bytes_to_keep(CUDA, 0) >= 2**28


def test_a_canary_is_read_on_the_gpu_as_exactly_as_on_a_cpu(base: Base) -> None:
    assert exact_format(base, four_bit=False) == (pick_device(), torch.float32)
    asked = [Prompt(({"role": "user", "content": f"Say {i}."},), None, "test") for i in range(8)]
    model = load_model(base, device=torch.device("cpu"), dtype=torch.float32)
    for canary in canaries(base, None, asked, seed=0):
        ids, start = canary["ids"], canary["reply_start"]
        (told,) = logprobs_of(model, [ids[:start]], [ids[start:]], temperature=1.0)
        assert canary["logprob"] == pytest.approx(float(told.mean()), abs=1e-3)


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


def a_lesson(policy: Policy) -> list[float]:
    """What a reward model of its own says of some replies after a lesson with rankings of 2 to 9 replies."""
    words = [
        "yes",
        "no, never",
        "perhaps " * 30,
        "it rains",
        "a b c",
        "so it is",
        "why not",
        "hm",
        "well " * 9,
    ]
    turns = [
        ranked(words[: 2 + i % 8], range(1, 3 + i % 8), conversation=f"c{i}", question=f"Question {i}?")
        for i in range(16)
    ]
    turns += [replace(turns[0], kind="all_bad", places=(1, 1))]
    replies = [reply for t in tokenise(turns, policy.base.format) for reply in t.replies]
    policy.heads.pop("mine", None)
    config = RefreshConfig(rank=4, reward_lr=5e-3, reward_batch=4, reward_steps=1)
    train_reward(policy, "mine", turns, config, seed=0, tell=lambda *_: None)
    normalise(policy, "mine", replies[:20])
    return scores_of(policy, "mine", replies)


@pytest.mark.parametrize("tokens", [4096, 64])
def test_a_reward_model_learns_what_it_learns_on_the_cpu(
    base: Base, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """In one pass, and in many, whose forward passes autograd's own thread computes again."""
    monkeypatch.setitem(TOKENS_PER_PASS, "cuda", tokens)
    here, there = (
        torch.tensor(a_lesson(Policy(base, device=device, dtype=torch.float32)))
        for device in (CUDA, torch.device("cpu"))
    )
    torch.testing.assert_close(here, there, atol=0.02, rtol=0.02)
    in_half = torch.tensor(a_lesson(Policy(base, device=CUDA, dtype=torch.bfloat16)))
    assert torch.corrcoef(torch.stack([in_half, there]))[0, 1] > 0.98


def improved(base: Base, precision: str, four_bit: bool = False, **more: Any) -> PolicyResult:
    """Two updates of PPO on eight prompts."""
    policy = Policy(base, device=CUDA, dtype=pick_dtype(precision, CUDA), four_bit=four_bit)
    policy.add("policy", seed=0)
    for name in ("reward-0", "judge"):
        policy.add(name, seed=1, with_head=True)
    config = RefreshConfig(updates=2, prompts_per_update=8, minibatch=4, ppo_lr=1e-3, warmup_updates=1)
    merged = merged_model(base, None, device=CUDA, dtype=pick_dtype(precision, CUDA), four_bit=four_bit)
    sampling = Sampling(config.temperature, 1.0, 16)
    task = Task(MergedSampler(merged), PROMPTS, config, sampling, Roles(("reward-0",)))
    return train_ppo(policy, task, **more)


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_updates_of_ppo_move_the_policy_and_stay_finite(
    base: Base, precision: str, four_bit: bool
) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    result = improved(base, precision, four_bit)
    assert result.updates == 2, result.stopped
    # Minibatches are padded otherwise than the batch was, for which attention has another kernel.
    assert result.history[0]["first_ratio_error"] < (1e-3 if precision == "float32" else 5e-3)
    assert abs(result.history[-1]["kl"]) > 0


def test_a_model_with_plain_layer_norms_is_improved_in_bfloat16(home: Home) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    other = base_of(GPTNeoXConfig(vocab_size=259, max_position_embeddings=256, **sizes), home)
    assert improved(other, "bfloat16").updates == 2


class Killed(Exception):
    """What ends a run here in place of a kill."""


def test_ppo_that_is_taken_up_again_goes_on_as_it_would_have(base: Base, tmp_path: Path) -> None:
    def die(update: int, fraction: float, metrics: dict[str, float]) -> None:
        raise Killed

    whole = improved(base, "float32")
    with pytest.raises(Killed):
        improved(base, "float32", checkpoints=tmp_path, tell=die)
    resumed = improved(base, "float32", checkpoints=tmp_path)
    assert resumed.updates == whole.updates == 2
    for name, wanted in whole.history[-1].items():
        if "seconds" not in name:
            assert resumed.history[-1][name] == pytest.approx(wanted, rel=1e-2, abs=1e-3), name
