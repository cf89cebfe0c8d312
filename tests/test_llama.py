"""Our own pass through Llama-like models computes what transformers does; other models are left to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
)

from chatbot.attention import Piece
from chatbot.engine import Engine
from chatbot.kernels import Format
from chatbot.llama import Llama, can_run
from chatbot.models import merged_model
from chatbot.padded import TransformersModel
from chatbot.prefixes import Prefixes
from chatbot.runner import Runner, prepare, runner_for
from data.home import Home
from data.records import Sampling
from tests.adapter_files import write_adapter
from tests.jobs import a_job, ask_tokens
from tests.tiny import base_of

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
KINDS = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied, long heads": LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=32),
    "llama, biased": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama 3": LlamaConfig(**SIZES, rope_parameters=LLAMA_3),
    "qwen 2": Qwen2Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen 3": Qwen3Config(**SIZES, head_dim=8),
    "qwen 3, tied, long heads": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
}
QWEN_3 = Qwen3Config(**{**SIZES, "vocab_size": 259}, head_dim=8)
OTHERS = {
    "a sliding window": MistralConfig(**SIZES, sliding_window=64),
    "a sliding window in some layers": Qwen3Config(
        **SIZES, head_dim=8, use_sliding_window=True, sliding_window=64, max_window_layers=1
    ),
    "norms over all heads": Olmo2Config(**SIZES),
    "experts": Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2),
    "logits that are scaled": GraniteConfig(**SIZES, logits_scaling=8.0),
    "attention sinks": GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "heads that are rotated in part": StableLmConfig(**SIZES),
    "layers without rotation": SmolLM3Config(**SIZES, pad_token_id=0),
    "a rope that changes": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
    "another activation": LlamaConfig(**SIZES, hidden_act="gelu"),
}


def a_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # transformers begins biases at zero, norms at one
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    return model


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]


@torch.no_grad()
def generated(model: PreTrainedModel, prompt: list[int], sampling: Sampling) -> list[int]:
    """What transformers itself writes greedily; no token ends it."""
    ids = torch.tensor([prompt])
    out = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return list(out[0, len(prompt) :].tolist())


def run(runner: Runner) -> None:
    """To the end of all its rows."""
    while not runner.is_idle:
        runner.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_and_the_tokens_after_it_have_the_logits_of_transformers(kind: str) -> None:
    model = a_model(KINDS[kind])
    llama = Llama(model, "float32")
    shelves, ids = llama.shelves(), [3 + (7 * i) % 90 for i in range(140)]
    wanted = logits_of(model, ids)
    place = shelves.take(len(ids))
    for start, end in ((0, 50), (50, 51), (51, 130)):
        [logits] = llama.forward(shelves, {}, [Piece(place, ids[start:end])])
        torch.testing.assert_close(logits, wanted[end - 1], atol=2e-3, rtol=1e-3)
    for at in range(130, 140):
        [logits] = llama.forward(shelves, {place: ids[at]}, [])
        torch.testing.assert_close(logits, wanted[at], atol=2e-3, rtol=1e-3)


def test_rows_of_different_length_and_pieces_of_prompts_share_a_pass() -> None:
    model = a_model(KINDS["llama"])
    llama = Llama(model, "float32")
    shelves = llama.shelves()
    texts = [
        [3 + (k * i) % 90 for i in range(length)] for k, length in ((5, 9), (7, 60), (11, 200), (13, 33))
    ]
    places = [shelves.take(len(text)) for text in texts]
    llama.forward(shelves, {}, [Piece(p, t[:-1]) for p, t in zip(places[:3], texts[:3], strict=True)])
    tokens = {place: text[-1] for place, text in zip(places[:3], texts[:3], strict=True)}
    logits = llama.forward(shelves, tokens, [Piece(places[3], texts[3])])
    for found, text in zip(logits, texts, strict=True):  # taken in the order of the shelves
        torch.testing.assert_close(found, logits_of(model, text)[-1], atol=2e-3, rtol=1e-3)
    assert [place.length for place in places] == [9, 60, 200, 33]


@pytest.mark.parametrize("kind", KINDS)
def test_replies_that_share_their_prompt_have_the_logits_of_each_alone(kind: str) -> None:
    """Beside them a prompt is read on their shelf, another reply ends, and one of another prompt goes on."""
    model = a_model(KINDS[kind])
    llama = Llama(model, "float32")
    shelves = llama.shelves()
    prompts = [[3 + (k * i) % 90 for i in range(length)] for k, length in ((5, 40), (7, 25), (11, 60))]
    first, second, late = (shelves.take(len(prompt), rows=4) for prompt in prompts)
    llama.forward(shelves, {}, [Piece(first, prompts[0]), Piece(second, prompts[1])])
    texts = {place: list(prompts[0]) for place in [first, *shelves.fork(first, 3)]}
    texts |= {place: list(prompts[1]) for place in [second, *shelves.fork(second, 1)]}
    for step in range(16):
        pieces = [Piece(late, prompts[2][at : at + 10]) for at in [10 * step] if step < 6]
        if step == 7:
            ended = list(texts)[1]
            shelves.leave(ended)
            del texts[ended]
        for number, text in enumerate(texts.values()):
            text.append(4 + (step * 31 + number * 17) % 90)
        shelves.make_room(texts)
        rows = [place for shelf in shelves.occupied() for place in shelf.places if place in texts]
        logits = llama.forward(shelves, {place: text[-1] for place, text in texts.items()}, pieces)
        for found, place in zip(logits, rows, strict=False):
            torch.testing.assert_close(found, logits_of(model, texts[place])[-1], atol=2e-3, rtol=1e-3)
    assert late.length == 60 and first.family.is_shared and not second.family.is_shared
    torch.testing.assert_close(
        llama.forward(shelves, {late: 5}, [])[0], logits_of(model, [*prompts[2], 5])[-1], atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_transformers(kind: str) -> None:
    model, ids = a_model(KINDS[kind]), list(range(5, 60))
    wanted = torch.log_softmax(logits_of(model, ids), -1)[9:-1].gather(1, torch.tensor(ids[10:])[:, None])
    for weights in (Llama(model, "float32"), TransformersModel(model)):
        torch.testing.assert_close(weights.logprobs(ids, 10), wanted[:, 0], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("form", "error"), [("bfloat16", 0.15), ("int8", 0.25)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_format_rounds_and_computes_the_same(kind: str, form: Format, error: float) -> None:
    model, ids = a_model(KINDS[kind]), [3 + (7 * i) % 90 for i in range(140)]
    found, wanted = (Llama(model, each).logprobs(ids, 1) for each in (form, "float32"))
    assert float((found - wanted).abs().mean()) < error  # of log-probabilities that spread by 2


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_transformers_generate_while_others_join_and_leave_and_turns_go_on(kind: str) -> None:
    model = a_model(KINDS[kind])
    runner = runner_for(prepare(model, "float32"), -1, prefixes=Prefixes(2**20))
    jobs = [
        a_job([3 + (k * i) % 90 for i in range(length)], range(rows), Sampling(0, max_new_tokens=new))
        for k, length, rows, new in ((5, 40, 3, 20), (7, 4, 1, 6), (11, 90, 2, 12), (13, 9, 1, 25))
    ]
    for job in jobs:  # each comes two steps after the one before it
        runner.add(job)
        runner.step()
        runner.step()
    jobs[0].rows[1].finish_reason = "cancelled"
    run(runner)
    prompt, [first, *_] = jobs[0].prompt, jobs[0].rows
    jobs.append(a_job([*prompt, *first.token_ids, 8, 9], [0, 1], Sampling(0, max_new_tokens=10)))
    runner.add(jobs[-1])
    run(runner)
    for job in jobs:
        for row in job.rows:
            assert row.token_ids == generated(model, job.prompt, job.sampling)[: len(row.token_ids)]
    assert [len(row.token_ids) for job in jobs for row in job.rows] == [20, 8, 20, 6, 12, 12, 25, 10, 10]


def test_versions_of_qwen_3_take_turns_and_each_is_transformers_generate(home: Home, tmp_path: Path) -> None:
    base, sampling = base_of(QWEN_3, home), Sampling(temperature=0, max_new_tokens=12)
    adapter = write_adapter(tmp_path / "adapter", base.config, size=0.5)
    engine = Engine(base, precision="float32")
    engine.start()
    engine.load("v000001", adapter)
    prompts = [[3 + (k * i) % 250 for i in range(5 * k)] for k in (3, 5, 7, 11)]
    asked = [
        (path, ask_tokens(engine, prompt, sampling=sampling, seeds=[0, 1], version=name))
        for prompt in prompts
        for name, path in (("base", None), ("v000001", adapter))
    ]
    for path, generation in asked:
        assert generation.wait(60)
        model = merged_model(base, path, device=torch.device("cpu"), dtype=torch.float32)
        assert can_run(model)
        wanted = generated(model, generation.prompt, sampling)
        assert [row.token_ids for row in generation.replies] == [wanted] * 2
    engine.close()


@pytest.mark.parametrize("kind", OTHERS)
def test_models_that_compute_something_else_are_left_to_transformers(kind: str) -> None:
    model = a_model(OTHERS[kind])
    assert not can_run(model)
    assert isinstance(prepare(model, "float32"), TransformersModel)


def test_the_weights_are_copies() -> None:
    """The model they came from is trained on, or goes; a version stays what it was."""
    model, ids = a_model(KINDS["llama"]), list(range(5, 30))
    llama = Llama(model, "float32")
    before = llama.logprobs(ids, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(llama.logprobs(ids, 1), before)


def test_layers_that_are_taken_leave_the_model_and_compute_the_same() -> None:
    model, ids = a_model(KINDS["llama"]), list(range(5, 30))
    wanted = Llama(model, "float32").logprobs(ids, 1)
    taken = prepare(model, "float32", takes=True)
    assert torch.equal(taken.logprobs(ids, 1), wanted)
    assert all(parameter.is_meta for parameter in model.get_decoder().layers.parameters())
