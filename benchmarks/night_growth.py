"""What a night takes of 100, 200 and 400 rankings: it should grow no faster than they do.

    python benchmarks/night_growth.py                  # about an hour on two cores
    python benchmarks/night_growth.py --sizes 50,100
    python benchmarks/night_growth.py --sizes 100,400,1000 --model DIRECTORY     # a tiny one: our own work

In one state directory simulated raters rank until there are so many, then a night trains everything anew,
which reads all rankings there are. PPO and the gate read none: one update of PPO is made, and the gate has 20
prompts. There is one reward model instead of three, with all else as by default. With few rankings a night
makes more passes over them (`--reward-steps`).

Beside the seconds of each stage stand those that all processors spent on the night, its fixed part included:
other work on the machine makes a night longer, and changes these little.

A size whose line lies in `--out` is not run again, and an interrupted night is resumed, whatever its size. A
night that was stopped once is marked `in parts`: its times are those of the last part.
"""

import argparse
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from learning import REPLIES, ended, rankings, read, refresh, trainer
from peers import commit, figure, table

NIGHT = ["--no-warm-start", "--members=1", "--updates=1", "--gate-prompts=20"]
STAGES = ("snapshot", "reward", "judge")
"""Those that read rankings."""


def main() -> None:
    """A night of each size that has no line yet; a table of all lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="100,200,400", help="rankings, growing, separated by commas")
    parser.add_argument("--model", help="a directory (the default model if left out)")
    parser.add_argument("--home", type=Path, default=Path("var/night-growth"), help="state directory")
    parser.add_argument("--out", type=Path, default=Path("var/night-growth.jsonl"), help="one line a night")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["NIGHTSCHOOL_HOME"] = str(arguments.home.absolute())
    for size in map(int, arguments.sizes.split(",")):
        while size not in {line["rankings"] for line in read(arguments.out)}:
            line = run_night(size, arguments.home.absolute(), arguments.model)
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    print(as_table(list(read(arguments.out))))


def run_night(size: int, home: Path, model: str | None) -> dict[str, Any]:
    """Rank what is missing, learn from all of it: what the night read, and the seconds of each stage.

    Where a night of another size was interrupted, it is that one: `rankings` tells.
    """
    began_at = commit()
    report, was_interrupted = report_of(size, ended(), home), True  # stopped before its line was written
    spent, which = 0.0, [f"--model={model}"] if model else []
    if report is None:
        missing = size - rankings(home)
        if missing < 0:
            sys.exit(f"{home} has {size - missing} rankings, more than {size} - name another --home.")
        if missing:
            flags = [f"--turns={missing}", f"--replies={REPLIES}", f"--seed={size - missing}"]
            trainer("simulate", "--taste=concise", *flags, *which)
        before = processor_seconds()
        _, run, was_interrupted = refresh([*NIGHT, *which])
        spent = processor_seconds() - before
        report = json.loads((home / "runs" / run["id"] / "report.json").read_text())
        if report["rankings"] != size and not was_interrupted:
            sys.exit(f"The night read {report['rankings']} rankings, not {size} - name a size it can read.")
    line = {"rankings": report["rankings"], "seconds": report["seconds"], "processor_seconds": round(spent)}
    return {**line, "was_interrupted": was_interrupted, "commit": began_at}


def processor_seconds() -> float:
    """What all commands so far have used of all processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report_of(size: int, runs: Sequence[dict[str, Any]], home: Path) -> dict[str, Any] | None:
    """The report of the run that has read so many rankings, if one of these has."""
    files = [home / "runs" / run["id"] / "report.json" for run in runs]
    reports = [json.loads(file.read_text()) for file in files if file.is_file()]
    return next((report for report in reports if report["rankings"] == size), None)


def as_table(lines: list[dict[str, Any]]) -> str:
    """Seconds of what reads rankings, each and together, and of one ranking."""
    rows = []
    for line in lines:
        times = [line["seconds"].get(stage, 0.0) for stage in STAGES]
        stages = [figure(time) for time in times]
        each = figure(sum(times) / line["rankings"], 2)
        origin = line.get("commit", "unknown") + ", in parts" * line["was_interrupted"]
        spent = figure(line["processor_seconds"], 0)
        rows.append([str(line["rankings"]), origin, *stages, figure(sum(times), 0), each, spent])
    head = ["rankings", "commit", *(f"{stage}, s" for stage in STAGES), "together, s", "a ranking, s"]
    return table([*head, "processors, whole night, s"], rows)


if __name__ == "__main__":
    main()
