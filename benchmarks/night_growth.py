"""What a night takes of 100, 200 and 400 rankings: it should grow no faster than they do.

    python benchmarks/night_growth.py                  # about an hour on two cores
    python benchmarks/night_growth.py --sizes 50,100

In one state directory simulated raters rank until there are so many, then a night trains everything anew,
which reads all rankings there are. PPO and the gate read none: one update of PPO is made, and the gate has 20
prompts. There is one reward model instead of three, with all else as by default. With few rankings a night
makes more passes over them (`--reward-steps`).

A size whose line lies in `--out` is not run again, and an interrupted night is resumed.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from learning import REPLIES, rankings, read, refresh, trainer
from peers import figure, table

NIGHT = ["--no-warm-start", "--members=1", "--updates=1", "--gate-prompts=20"]
STAGES = ("snapshot", "reward", "judge")
"""Those that read rankings."""


def main() -> None:
    """A night of each size that has no line yet; a table of all lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="100,200,400", help="rankings, growing, separated by commas")
    parser.add_argument("--home", type=Path, default=Path("var/night-growth"), help="state directory")
    parser.add_argument("--out", type=Path, default=Path("var/night-growth.jsonl"), help="one line a night")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["NIGHTSCHOOL_HOME"] = str(arguments.home.absolute())
    for night, size in enumerate(map(int, arguments.sizes.split(",")), start=1):
        if size not in {line["rankings"] for line in read(arguments.out)}:
            line = {"rankings": size, **run_night(night, size, arguments.home.absolute())}
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    print(as_table(list(read(arguments.out))))


def run_night(night: int, size: int, home: Path) -> dict[str, Any]:
    """Rank what is missing, learn from all of it; the seconds of each stage."""
    missing = size - rankings(home)
    if missing > 0:
        flags = [f"--turns={missing}", f"--replies={REPLIES}", f"--seed={size - missing}"]
        trainer("simulate", "--taste=concise", *flags)
    _, run, was_interrupted = refresh(night, NIGHT)
    report = json.loads((home / "runs" / run["id"] / "report.json").read_text())
    return {"seconds": report["seconds"], "was_interrupted": was_interrupted}


def as_table(lines: list[dict[str, Any]]) -> str:
    """Seconds of what reads rankings, each and together, and of one ranking."""
    rows = []
    for line in lines:
        times = [line["seconds"].get(stage, 0.0) for stage in STAGES]
        stages = [figure(time) for time in times]
        each = figure(sum(times) / line["rankings"], 2)
        rows.append([str(line["rankings"]), *stages, figure(sum(times), 0), each])
    head = ["rankings", *(f"{stage}, s" for stage in STAGES), "together, s", "a ranking, s"]
    return table(head, rows)


if __name__ == "__main__":
    main()
