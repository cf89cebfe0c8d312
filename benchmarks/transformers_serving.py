"""The peer: transformers, in one of three ways. A child of serving.py, in our own environment.

    python benchmarks/transformers_serving.py --model DIR --work FILE.json --method static

`sequential` is `generate`, one request after the other; `static` is one `generate` over a padded batch, which
goes on until its longest reply is done; `continuous` is transformers' own continuous batching, each request
with its own length. Attention is SDPA; no reply may end early. Prints one line of JSON: seconds of each
scene in each round (the first warms up and is not told), of its first token, and peak memory.

Continuous batching has a cache of its own, by default most of the free memory; here it is as large as the
work needs, which makes it faster. Its start and stop are told beside the time, not in it.
"""

import json
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import Result, answered, parser_for, peak_memory_gib
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

Request = dict[str, Any]
Times = dict[str, float]
"""`seconds` to the last token, `first`: median seconds to a first token, and what a method adds."""
NO_TOKEN = -1


def main() -> None:
    """Do the work, print what it took."""
    parser = parser_for(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="rounds of scenes, from serving.py")
    parser.add_argument("--method", choices=["sequential", "static", "continuous"], required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    run = {"sequential": one_after_the_other, "static": static_batch, "continuous": continuous_batching}
    started = time.monotonic()
    model = load(arguments.model, arguments.precision)
    result: Result = {"start_seconds": time.monotonic() - started}

    def answer(requests: list[Request], name: str) -> tuple[Times, list[list[int]]] | None:
        is_batch = len(requests) > 1 or arguments.method == "sequential"
        return run[arguments.method](model, requests) if is_batch else None

    result |= answered(json.loads(arguments.work.read_text()), answer)
    result["peak_memory_gib"] = peak_memory_gib()
    print(json.dumps(result))


def load(directory: str, precision: str) -> PreTrainedModel:
    """The model, with a generation config that ends no reply."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=precision, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def settings(new: int, replies: int = 1, temperature: float = 0.0) -> GenerationConfig:
    """Exactly `new` tokens, greedy where the temperature is 0."""
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=new,
        min_new_tokens=new,
        num_return_sequences=replies,
        eos_token_id=None,
        pad_token_id=0,
        **drawn,
    )


class Clock:
    """A stopping criterion that stops nothing: asked after every token, it notes when the first was there."""

    def __init__(self) -> None:
        self.first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.first = self.first or time.monotonic()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def one_after_the_other(model: PreTrainedModel, requests: Sequence[Request]) -> tuple[Times, list[list[int]]]:
    """`generate` for each request in turn; replies to one prompt are its num_return_sequences."""
    started, first, tokens = time.monotonic(), [], []
    for one in requests:
        clock = Clock()
        ids = torch.tensor([one["ids"]], device=model.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings(one["new"], one["replies"], one["temperature"]),
            stopping_criteria=[clock],
        )
        first.append(clock.first - started)
        tokens.append(out[0, ids.shape[1] :].tolist())
    return {"seconds": time.monotonic() - started, "first": statistics.median(first)}, tokens


@torch.inference_mode()
def static_batch(model: PreTrainedModel, requests: Sequence[Request]) -> tuple[Times, list[list[int]]]:
    """One `generate` over prompts padded on the left, as long as the longest reply; the others are cut."""
    started, clock = time.monotonic(), Clock()
    width = max(len(one["ids"]) for one in requests)
    ids = torch.tensor([[0] * (width - len(one["ids"])) + one["ids"] for one in requests])
    mask = torch.tensor([[0] * (width - len(one["ids"])) + [1] * len(one["ids"]) for one in requests])
    out = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=settings(max(one["new"] for one in requests)),
        stopping_criteria=[clock],
    )
    seconds = time.monotonic() - started
    tokens = [row[width : width + one["new"]].tolist() for row, one in zip(out, requests, strict=True)]
    return {"seconds": seconds, "first": clock.first - started}, tokens


def continuous_batching(model: PreTrainedModel, requests: Sequence[Request]) -> tuple[Times, list[list[int]]]:
    """All requests at once, each with its own length; the manager is started and stopped around them."""
    started = time.monotonic()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(max_new_tokens=1, eos_token_id=NO_TOKEN, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(**cache_for(requests)),
    )
    manager.start()
    asked = time.monotonic()
    names = [
        manager.add_request(
            one["ids"], max_new_tokens=one["new"], eos_token_id=NO_TOKEN, record_timestamps=True
        )
        for one in requests
    ]
    done: dict[str | None, Any] = {}
    while len(done) < len(requests):
        result = manager.get_result(timeout=1)
        assert result is not None or manager.is_running(), "continuous batching ended on its own"
        if result is not None and result.is_finished():
            assert result.error is None, result.error
            done[result.request_id] = result
    seconds = time.monotonic() - asked
    manager.stop()
    whole = time.monotonic() - started
    first = statistics.median(done[name].timestamps[0] - done[name].created_time for name in names)
    times = {"seconds": seconds, "first": first, "with_start_and_stop": whole}
    return times, [list(done[name].generated_tokens) for name in names]


def cache_for(requests: Sequence[Request]) -> dict[str, int]:
    """Pages for every request at its longest, and a pass wide enough for all prompts at once."""
    page = 256
    blocks = sum(-(-(len(one["ids"]) + one["new"]) // page) for one in requests)
    prompts = sum(len(one["ids"]) for one in requests)
    return {"page_size": page, "num_blocks": blocks + 1, "max_batch_tokens": prompts}


if __name__ == "__main__":
    main()
