"""Any model that transformers loads is decoded: windows, norms of queries, other families."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, PreTrainedConfig, Qwen3Config

from chatbot.padded import PaddedRunner, TransformersModel
from chatbot.runner import prepare
from data.errors import Refused
from data.records import Sampling
from tests.jobs import a_job

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
KINDS = {
    "qwen 3": Qwen3Config(**WIDE, head_dim=8),
    "mistral with a window": MistralConfig(**WIDE, sliding_window=16),
    "gpt 2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}
GREEDY = Sampling(temperature=0, max_new_tokens=20)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_in_a_mixed_batch_is_transformers_generate(kind: str) -> None:
    config: PreTrainedConfig = KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = prepare(model, "float32")
    assert isinstance(weights, TransformersModel)
    runner = PaddedRunner(weights, end_of_turn=2)
    jobs = [
        a_job([3 + (k * i) % 90 for i in range(length)], [0, 1], GREEDY) for k, length in ((5, 4), (7, 30))
    ]
    for job in jobs:
        runner.add(job)
    while not runner.is_idle:
        runner.step()
    for job in jobs:
        ids = torch.tensor([job.prompt])
        out = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert [row.token_ids for row in job.rows] == [out[0, len(job.prompt) :].tolist()] * 2


def test_a_model_that_transformers_decodes_is_not_said_to_be_int8() -> None:
    with pytest.raises(Refused, match="decoded by transformers, which has no int8 here - use bfloat16"):
        prepare(AutoModelForCausalLM.from_config(KINDS["qwen 3"]), "int8")


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
    for job, rank in ((long, 1), (short, 1), (urgent, 0)):
        runner.add(job, rank)
    written = []
    for _ in range(3):
        runner.step()
        written.append([len(job.rows[0].token_ids) for job in (urgent, long, short)])
    assert written == [[1, 0, 0], [2, 1, 0], [3, 2, 1]]
