"""A step of decoding by format of the weights and number of rows, beside transformers; and what int8 costs.

    python benchmarks/formats.py                  # about two minutes on two idle cores

Each figure is the median of a dozen steps after a prompt of 64 tokens, without sampling. The second table
holds every format against float32 on the fixed text of the gate: perplexity, the mean KL of the next token's
distribution, and how often the likeliest token is the same. `int8 kernel` is the int8 format with its own
kernel for any number of rows, where the format itself takes that of bfloat16 for many (kernels.INT8_ROWS).
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

from data.cli import ENVIRONMENT

if __name__ == "__main__":  # as our commands do, before PyTorch's libraries are loaded and read it
    os.environ.update({**ENVIRONMENT, **os.environ})

import torch
from peers import figure, parser_for, table
from transformers import DynamicCache, PreTrainedModel

from chatbot import kernels
from chatbot.attention import Piece
from chatbot.basemodel import Base, load_base
from chatbot.kernels import Format
from chatbot.llama import Llama
from chatbot.models import merged_model
from chatbot.precision import FORMATS
from data.home import open_home
from data.prompts import passage

ROWS = (1, 4, 6, 8, 16, 32, 64)
PROMPT, STEPS, TEXT = 64, 12, 900
CPU = torch.device("cpu")
EXACT = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure, and print both tables."""
    model = parser_for(__doc__).parse_args().model
    base = load_base(model, open_home(), tell=lambda line: print(line, file=sys.stderr))
    models = {name: merged_model(base, None, device=CPU, dtype=dtype) for name, dtype in EXACT.items()}
    ours = {form: Llama(models["float32" if form == "float32" else "bfloat16"], form) for form in FORMATS}
    lines = []
    for rows in ROWS:
        times = [time_ours(llama, rows) for llama in ours.values()]
        times.append(time_int8_kernel(ours["int8"], rows))
        times += [time_transformers(model, rows) for model in models.values()]
        lines.append([str(rows), *(figure(milliseconds) for milliseconds in times)])
    peers = [f"transformers, {name}" for name in models]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds a step\n")
    print(table(["rows", *(f"ours, {form}" for form in ours), "ours, int8 kernel", *peers], lines))
    print(
        table(
            ["format", "perplexity", "KL to float32, nats a token", "same likeliest token"],
            fidelity(base, ours),
        )
    )


def median_milliseconds(step: Callable[[], object], steps: int = STEPS) -> float:
    """Of so many calls after two."""
    seconds = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:]) * 1000


def time_ours(llama: Llama, rows: int) -> float:
    """A step of so many rows."""
    shelves = llama.shelves()
    places = [shelves.take(PROMPT + STEPS + 2) for _ in range(rows)]
    llama.forward(shelves, {}, [Piece(place, [5] * PROMPT) for place in places])
    return median_milliseconds(lambda: llama.forward(shelves, dict.fromkeys(places, 5), []))


def time_int8_kernel(llama: Llama, rows: int) -> float:
    """The same by the kernel of few rows, however many there are."""
    usual, kernels.INT8_ROWS = kernels.INT8_ROWS, rows
    try:
        return time_ours(llama, rows)
    finally:
        kernels.INT8_ROWS = usual


@torch.inference_mode()
def time_transformers(model: PreTrainedModel, rows: int) -> float:
    """The same with transformers' own cache."""
    cache = DynamicCache(config=model.config)
    model(torch.full((rows, PROMPT), 5), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return median_milliseconds(lambda: model(torch.full((rows, 1), 5), past_key_values=cache, use_cache=True))


@torch.inference_mode()
def fidelity(base: Base, ours: dict[Format, Llama]) -> list[list[str]]:
    """A line a format."""
    ids = base.format.encode_text(passage())[:TEXT]
    targets = torch.tensor(ids[1:])[:, None]
    exact = next_token_logprobs(ours["float32"], ids)
    lines = []
    for form, llama in ours.items():
        found = next_token_logprobs(llama, ids)
        perplexity = float((-found.gather(1, targets).mean()).exp())
        kl = float((exact.exp() * (exact - found)).sum(-1).mean())
        same = float((found.argmax(-1) == exact.argmax(-1)).float().mean())
        lines.append([form, figure(perplexity, 2), figure(kl, 4), f"{same:.1%}"])
    return lines


def next_token_logprobs(llama: Llama, ids: list[int]) -> torch.Tensor:
    """(T - 1, V) after each token of a text but the last, read token by token: by the kernels of few rows."""
    shelves = llama.shelves()
    place = shelves.take(len(ids))
    rows = [llama.forward(shelves, {}, [Piece(place, [token])]) for token in ids[:-1]]
    return torch.log_softmax(torch.cat(rows), dim=-1)


if __name__ == "__main__":
    main()
