"""Any model that transformers loads is decoded, or refused at the start: windows, states, other families."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    FalconH1Config,
    GPT2Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    ModernBertDecoderConfig,
    Olmo2Config,
    OpenAIGPTConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from chatbot.engine import Engine
from chatbot.models import load_model
from chatbot.padded import PaddedRunner, TransformersModel, _are_alike
from chatbot.runner import prepare
from chatbot.sampling import PlainJob
from data.errors import Refused
from data.home import Home
from data.records import Sampling
from tests.jobs import a_job, ask_tokens
from tests.tiny import base_of

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
STATES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
PLAIN = {
    "norms over all heads": Olmo2Config(**WIDE),
    "mistral with a window": MistralConfig(**WIDE, sliding_window=16),
    "gpt 2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}
RECURRENT = {
    "convolutions": Lfm2Config(**WIDE, layer_types=["conv", "full_attention"]),
    "linear attention": Qwen3NextConfig(
        **WIDE,
        **EXPERTS,
        head_dim=8,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "states beside attention": FalconH1Config(**WIDE, **MAMBA, mamba_d_ssm=64),
    "states and experts": GraniteMoeHybridConfig(
        **WIDE, **MAMBA, num_local_experts=4, layer_types=["mamba", "attention"]
    ),
    "jamba": JambaConfig(
        **WIDE, **EXPERTS, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, use_mamba_kernels=False
    ),
    "mamba": MambaConfig(**STATES),
    "mamba 2": Mamba2Config(**STATES, num_heads=4, head_dim=16, n_groups=1, pad_token_id=0),
}
NO_PADDING = {
    "positions that count padding": BartConfig(
        vocab_size=97,
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        max_position_embeddings=256,
        forced_eos_token_id=None,
    ),
}
KINDS = {**PLAIN, **RECURRENT, **NO_PADDING}
REFUSED = {
    "states in its layers": RecurrentGemmaConfig(**{**SMALL, "num_hidden_layers": 3}, intermediate_size=64),
    "a state under another name": RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2),
    "no cache at all": OpenAIGPTConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}


def a_model(kind: str) -> PreTrainedModel:
    """Louder than new ones, so that a token depends on those before it."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config({**KINDS, **REFUSED}[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model


def written(weights: TransformersModel, temperature: float) -> list[PlainJob]:
    """A prompt of 4 tokens and one of 30, two replies each, of which some end before others."""
    runner = PaddedRunner(weights, end_of_turn=2)
    jobs = [
        a_job([3 + (k * i) % 90 for i in range(length)], [0, 1], Sampling(temperature, max_new_tokens=new))
        for k, length, new in ((5, 4, 20), (7, 30, 12))
    ]
    for job in jobs:
        runner.add(job)
    while not runner.is_idle:
        runner.step()
    return jobs


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_in_a_mixed_batch_is_transformers_generate(kind: str) -> None:
    model = a_model(kind)
    weights = prepare(model, "float32")
    assert isinstance(weights, TransformersModel)
    for job in written(weights, 0):
        ids, most = torch.tensor([job.prompt]), job.sampling.max_new_tokens
        out = model.generate(ids, max_new_tokens=most, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert [row.token_ids for row in job.rows] == [out[0, len(job.prompt) :].tolist()] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_have_the_log_probabilities_of_a_pass_without_a_cache(kind: str) -> None:
    weights = TransformersModel(a_model(kind))
    for job in written(weights, 1):
        for row in job.rows:
            wanted = weights.logprobs(job.prompt + row.token_ids, len(job.prompt))
            torch.testing.assert_close(torch.tensor(row.logprobs), wanted, atol=1e-3, rtol=1e-3)


def test_only_models_that_see_padding_get_prompts_of_equal_length() -> None:
    found = {kind for kind in KINDS if not TransformersModel(a_model(kind)).can_pad}
    assert found == set(NO_PADDING)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_whose_cache_does_not_go_on_is_refused(kind: str) -> None:
    with pytest.raises(Refused, match=r"cache '.*' does not say what it says without one"):
        prepare(a_model(kind), "float32")


@pytest.mark.parametrize(("tokens", "are_alike"), [(0, True), (2, True), (3, False), (5, False)])
def test_rounding_may_send_a_few_tokens_to_other_experts(tokens: int, are_alike: bool) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(5, 97)
    found = wanted + 0.1 * torch.randn(5, 97)
    found[:tokens] = torch.randn(tokens, 97)
    assert _are_alike(found, wanted, within=0.15) == are_alike


def test_a_server_refuses_to_start_rather_than_fail_each_turn(home: Home) -> None:
    engine = Engine(base_of(REFUSED["states in its layers"], home))
    with pytest.raises(Refused, match="'recurrent_gemma' does not say what it says without one"):
        engine.start()


def test_a_model_whose_decoder_is_not_found_is_refused(home: Home) -> None:
    base = base_of(ModernBertDecoderConfig(**SMALL, intermediate_size=64, pad_token_id=0), home)
    with pytest.raises(Refused, match="'modernbert-decoder' has its layers where they are not looked for"):
        load_model(base, device=torch.device("cpu"), dtype=torch.float32)


def test_a_model_that_adds_up_in_float32_serves_in_bfloat16(home: Home) -> None:
    engine = Engine(base_of(MambaConfig(**{**STATES, "vocab_size": 259}), home), precision="bfloat16")
    engine.start()
    generation = ask_tokens(engine, [5, 6, 7], sampling=Sampling(max_new_tokens=4), seeds=[0, 1])
    assert generation.wait(60) and not any(row.finish_reason == "failed" for row in generation.replies)
    engine.close()


def test_a_model_that_transformers_decodes_is_not_said_to_be_int8() -> None:
    with pytest.raises(Refused, match="decoded by transformers, which has no int8 here - use bfloat16"):
        prepare(AutoModelForCausalLM.from_config(KINDS["gpt 2"]), "int8")


def test_jobs_that_come_later_are_a_batch_of_their_own_and_all_take_turns() -> None:
    torch.manual_seed(0)
    runner = PaddedRunner(
        TransformersModel(AutoModelForCausalLM.from_config(KINDS["gpt 2"]).eval()), end_of_turn=-1
    )
    early, late = (a_job([5, 6, 7], [0], Sampling(max_new_tokens=8)) for _ in range(2))
    runner.add(early)
    runner.step()
    runner.add(late)
    runner.step()
    assert [len(job.rows[0].token_ids) for job in (early, late)] == [2, 1]
    assert runner.width == 2


def test_an_urgent_job_and_one_that_would_be_padded_much_are_batches_of_their_own() -> None:
    torch.manual_seed(0)
    runner = PaddedRunner(
        TransformersModel(AutoModelForCausalLM.from_config(KINDS["gpt 2"]).eval()), end_of_turn=-1
    )
    sampling = Sampling(max_new_tokens=8)
    short, long, urgent = (a_job([5] * length, [0], sampling) for length in (3, 200, 3))
    for job, priority in ((long, 1), (short, 1), (urgent, 0)):
        runner.add(job, priority)
    written = []
    for _ in range(3):
        runner.step()
        written.append([len(job.rows[0].token_ids) for job in (urgent, long, short)])
    assert written == [[1, 0, 0], [2, 1, 0], [3, 2, 1]]
