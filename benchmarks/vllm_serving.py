"""The peer: vLLM, in process, without a server. A child of serving.py, in a venv of its own.

    python -m venv var/vllm && var/vllm/bin/pip install -r benchmarks/requirements-vllm.txt
    var/vllm/bin/python benchmarks/vllm_serving.py --model DIR --work FILE.json

All requests of a scene are added before the first step, as `LLM.generate` does; then vLLM schedules them as
it likes (continuous batching, chunked prefill, prefix cache). It compiles its model at the start, which is
told as `start_seconds`; `--eager` leaves that out. Prints one line of JSON like transformers_serving.py.

On a CPU it gets every core it may use, or the first OMP_NUM_THREADS; VLLM_CPU_OMP_THREADS_BIND changes that.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import Result, answered, parser_for, peak_memory_gib

Request = dict[str, Any]
CORES = sorted(os.sched_getaffinity(0))[: int(os.environ.get("OMP_NUM_THREADS") or 1024)]
DEFAULTS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CORES)),  # else it keeps a core for itself
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no second process: less to send, and memory that can be measured
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Come with vllm-cpu, for another torch than it has, and break its import; text needs none of them."""


def main() -> None:
    """Do the work, print what it took."""
    parser = parser_for(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="rounds of scenes, from serving.py")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    work = json.loads(arguments.work.read_text())
    longest = max(len(one["ids"]) + one["new"] for scenes in work for some in scenes.values() for one in some)
    started = time.monotonic()
    engine = start(arguments, longest)
    result: Result = {"start_seconds": time.monotonic() - started}
    result |= answered(work, lambda requests, name: answer(engine, requests, name))
    result["peak_memory_gib"] = peak_memory_gib()
    print(json.dumps(result))


def start(arguments: argparse.Namespace, longest: int) -> Any:
    """vLLM's engine with the model loaded and, unless eager, compiled."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in UNWANTED:
        sys.modules[name] = None  # type: ignore[assignment]
    from vllm import LLM  # after the environment, which it reads when imported

    llm = LLM(
        model=arguments.model,
        dtype=arguments.precision,
        max_model_len=max(1024, longest),
        max_num_seqs=16,
        enforce_eager=arguments.eager,
        seed=0,
    )
    return llm.llm_engine


def answer(engine: Any, requests: Sequence[Request], name: str) -> tuple[dict[str, float], list[list[int]]]:
    """Seconds to the last token, median seconds to a first token, and the tokens of each first reply."""
    from vllm import SamplingParams

    started = time.monotonic()
    for number, one in enumerate(requests):
        params = SamplingParams(
            n=one["replies"],
            temperature=one["temperature"],
            max_tokens=one["new"],
            ignore_eos=True,
            seed=number,
        )
        engine.add_request(f"{name} {number}", {"prompt_token_ids": one["ids"]}, params)
    first: dict[str, float] = {}
    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            first.setdefault(output.request_id, time.monotonic() - started)
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    seconds = time.monotonic() - started
    ordered = [tokens[f"{name} {number}"] for number in range(len(requests))]
    return {"seconds": seconds, "first": statistics.median(first.values())}, ordered


if __name__ == "__main__":
    main()
