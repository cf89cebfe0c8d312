"""How OpenMP's threads wait, and what a step of decoding costs for it: alone, in company, beside a pool.

    python benchmarks/waiting.py                  # about six minutes on two idle cores

A pass through a small model is hundreds of parallel loops of some microseconds, and between two of them the
threads wait. Each way of waiting is set in the environment of a process of its own, which does steps of four
rows in bfloat16: with the machine to itself; while a second such process does the same; and after another of
its threads has computed in parallel, which leaves that thread a pool of its own. Figures are medians.
"""

import argparse
import os
import subprocess
import sys
import threading
import time

import torch
from formats import median_milliseconds
from peers import figure, parser_for, table

from chatbot.attention import Piece
from chatbot.basemodel import Base, load_base
from chatbot.llama import Llama
from chatbot.models import merged_model
from data.home import open_home

WAYS = (
    {"OMP_WAIT_POLICY": "PASSIVE"},
    {"GOMP_SPINCOUNT": "1000"},
    {"GOMP_SPINCOUNT": "10000"},
    {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "2000"},
    {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "10000"},
    {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "40000"},
    {},
)
ROWS, PROMPT, STEPS = 4, 60, 150


def main() -> None:
    """Each way in turn; a table."""
    arguments = parse()
    if arguments.child:
        print(step_milliseconds(load_base(arguments.model, open_home()), arguments.child))
        return
    lines = []
    for way in WAYS:
        [alone] = run(way, ["alone"], arguments)
        company = run(way, ["alone", "alone"], arguments)
        [pool] = run(way, ["pool"], arguments)
        name = " ".join(f"{key}={value}" for key, value in way.items()) or "nothing set"
        lines.append([name, figure(alone), figure(max(company)), figure(pool)])
        print(name, file=sys.stderr, flush=True)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores; milliseconds a step of {ROWS} rows\n")
    print(table(["environment", "alone", "two processes, the slower", "beside an idle second pool"], lines))


def parse() -> argparse.Namespace:
    """The flags."""
    parser = parser_for(__doc__)
    parser.add_argument("--child", choices=["alone", "pool"], help=argparse.SUPPRESS)
    return parser.parse_args()


def run(way: dict[str, str], children: list[str], arguments: argparse.Namespace) -> list[float]:
    """What each of the children measured; they run at the same time."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))} | way
    command = [sys.executable, __file__, *(["--model", arguments.model] if arguments.model else [])]
    started = [
        subprocess.Popen([*command, "--child", child], env=environment, stdout=subprocess.PIPE, text=True)
        for child in children
    ]
    return [float(process.communicate()[0].split()[-1]) for process in started]


def step_milliseconds(base: Base, scene: str) -> float:
    """Of one process."""
    if scene == "pool":
        threading.Thread(target=compute_and_stay, daemon=True).start()
        time.sleep(1)
    device = torch.device("cpu")
    llama = Llama(merged_model(base, None, device=device, dtype=torch.bfloat16), "bfloat16")
    shelves = llama.shelves()
    places = [shelves.take(PROMPT + STEPS + 2) for _ in range(ROWS)]
    llama.forward(shelves, {}, [Piece(place, [5] * PROMPT) for place in places])
    return median_milliseconds(lambda: llama.forward(shelves, dict.fromkeys(places, 5), []), STEPS)


def compute_and_stay() -> None:
    """Leaves a pool that does nothing for as long as the process lives."""
    matrix = torch.randn(512, 512)
    torch.mm(matrix, matrix)
    threading.Event().wait()


if __name__ == "__main__":
    main()
