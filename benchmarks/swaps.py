"""A hundred versions served one after the other under eight streams: is every answer its version's own?

    python benchmarks/swaps.py --quick       # ten swaps
    python benchmarks/swaps.py               # a hundred: about half an hour on two cores

Adapters of random numbers, rank 16 on every linear layer, and the base take turns, each time under a new
version name, while eight greedy streams never stop asking. First the streams run alone for as long as
`--quiet` says; the table compares the gaps between their tokens then and during the swaps. In float32 every
answer must be, to the token, what the version stamped on it says when nobody else is there. Other formats
round by the shape of a batch: there only the log-probability that proves a version is compared.

The engine is driven as the server drives it, from the same process and by a thread of the lowest priority; a
version that is built (read, merged, packed) and proven (a log-probability) still competes with the streams.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data.cli import ENVIRONMENT

if __name__ == "__main__":  # as our commands do, before PyTorch's libraries are loaded and read it
    os.environ.update({**ENVIRONMENT, **os.environ})

import torch
from peers import figure, table
from safetensors.torch import save_file
from swapping import Answer, Mistakes, Swap, growth, mistakes, reference, stream, swap

from chatbot import adapters
from chatbot.basemodel import Base, load_base
from chatbot.chatformat import Messages
from chatbot.engine import Engine
from chatbot.threads import lower_priority
from data.home import open_home
from data.prompts import judging_prompts
from data.records import Sampling

ROOT = Path(__file__).parent.parent
RANK = 16
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZE = 0.02
"""Standard deviation of an adapter's numbers: enough that every adapter says something else."""


def main() -> None:
    """References, quiet streams, streams under swaps, the table; exit code 1 where an answer was wrong."""
    arguments = parse()
    base = load_base(arguments.model, open_home(), tell=tell)
    make = partial(Engine, base, precision=arguments.precision)
    sampling = Sampling(temperature=0, max_new_tokens=arguments.tokens)
    prompts: list[Messages] = [list(prompt.messages) for prompt in judging_prompts()[: arguments.prompts]]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1, initializer=lower_priority) as beside:
        made = [write_adapter(Path(folder) / f"{seed}", base, seed) for seed in range(arguments.adapters)]
        tell(f"What {len(made)} adapters and the base say to {len(prompts)} prompts, one at a time.")
        references = [reference(make, adapter, prompts, sampling) for adapter in (None, *made)]
        engine = make()
        engine.start()
        tell(f"{arguments.streams} streams for {arguments.quiet:.0f} s without a swap.")
        end = time.monotonic() + arguments.quiet
        quiet = stream(
            engine, prompts, sampling, streams=arguments.streams, until=lambda: time.monotonic() > end
        )
        tell(f"The same with {arguments.swaps} swaps.")
        swapping = beside.submit(swap, engine, references, arguments.swaps, pause=arguments.pause)
        busy = stream(engine, prompts, sampling, streams=arguments.streams, until=swapping.done)
        swaps = swapping.result()
        is_exact = arguments.precision == "float32"
        found = mistakes(engine, references, swaps, busy, is_exact=is_exact)
        engine.close()
    report = summary(swaps, quiet, busy, found, is_exact=is_exact)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report | {"swaps": [asdict(one) for one in swaps]}, indent=1))
    print(table(["", arguments.precision], [[name, value] for name, value in report.items()]))
    sys.exit(1 if found.wrong or found.failed else 0)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="base model: a directory or a hub id; the embedded default if left out"
    )
    parser.add_argument("--precision", default="float32", help="other ones do not promise equal answers")
    parser.add_argument("--swaps", type=int, default=100, help="3 or more")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=4, help="different ones, besides the base")
    parser.add_argument("--prompts", type=int, default=8, help="different ones")
    parser.add_argument("--tokens", type=int, default=96, help="the longest reply")
    parser.add_argument("--quiet", type=float, default=120.0, help="seconds without a swap")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two swaps, at least")
    parser.add_argument("--quick", action="store_true", help="ten swaps, twenty quiet seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "benchmarks" / "swaps.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.swaps, arguments.quiet = 10, 20.0
    if arguments.swaps < 3:
        parser.error(f"--swaps {arguments.swaps} is too few to see memory grow - give 3 or more.")
    return arguments


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_adapter(directory: Path, base: Base, seed: int) -> Path:
    """An adapter in PEFT's format, of random numbers."""
    directory.mkdir()
    settings: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    settings |= {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": LINEAR}
    (directory / adapters.CONFIG).write_text(json.dumps(settings))
    shapes = adapters.expected_shapes(directory, adapters.read_lora(directory), base.config)
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=draw) * SIZE for name, shape in shapes.items()}
    save_file(tensors, directory / adapters.TENSORS)
    return directory


def summary(
    swaps: Sequence[Swap],
    quiet: Sequence[Answer],
    busy: Sequence[Answer],
    found: Mistakes,
    *,
    is_exact: bool,
) -> dict[str, str]:
    """The lines of the table; answers were compared where the format `is_exact`."""
    before, during = gaps(quiet), gaps(busy)
    parts = {name: [1000 * getattr(one, name) for one in swaps] for name in ("load", "proof", "serve")}
    return {
        "swaps": f"{len(swaps)}",
        "answers": f"{len(busy)}, of {len({one.version for one in busy})} versions",
        "ended after another version had begun to serve": f"{sum(one.overtaken for one in busy)}",
        "failed": f"{len(found.failed)}",
        "not what the version says": f"{len(found.wrong)}" if is_exact else "not compared",
        "left it where two tokens tie": f"{len(found.ties)}" if is_exact else "not compared",
        "gap without swaps: p50 / p99 / most, ms": spread(before),
        "gap under swaps: p50 / p99 / most, ms": spread(during),
        "added at p99, ms": f"**{quantile(during, 0.99) - quantile(before, 0.99):.0f}**",
        "a swap: build / prove / flip, median ms": " / ".join(
            figure(statistics.median(values), 2) for values in parts.values()
        ),
        "memory after the first tenth, GiB": figure(swaps[len(swaps) // 10].memory / 2**30, 2),
        "memory at the end, GiB": figure(swaps[-1].memory / 2**30, 2),
        "growth from the second tenth to the last": f"**{100 * growth(swaps):+.1f} %**",
    }


def gaps(answers: Sequence[Answer]) -> list[float]:
    """All gaps in milliseconds, shortest first."""
    return sorted(1000 * gap for answer in answers for gap in answer.gaps)


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(ordered: Sequence[float]) -> str:
    return " / ".join(
        f"{value:.0f}" for value in (quantile(ordered, 0.5), quantile(ordered, 0.99), ordered[-1])
    )


if __name__ == "__main__":
    main()
