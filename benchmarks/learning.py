"""Does it learn? Nights on the embedded model, from nothing: simulated raters, a refresh, a measurement.

    python benchmarks/learning.py                     # the whole table: hours on two cores
    python benchmarks/learning.py --quick             # nights of 12 to 20 minutes, seeds 0 to 2
    python benchmarks/learning.py --only concise-0    # one row of cells, by its whole name

A cell is a taste, a seed, a share of flipped rankings and a night. Each night runs the same commands that a
person would (`trainer simulate`, `refresh`, `measure`) with their defaults, in a state directory of the
row's own; its figures are one line of `--out`. A cell that has its line is not run again, rankings that are
there are not made again, and an interrupted night is resumed: a stopped benchmark goes on where it was. A
night that was stopped once is `in parts`: its time is unknown, its commit that of the last part.

200 of the practice prompts are kept from raters, reward models and PPO: on these the version of each night is
held against the base, and that of the second night against the first. A taste that ties often is also held
against the best of four replies of the base.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peers import commit

ROOT = Path(__file__).parent.parent
TURNS, REPLIES, UNSEEN = 100, 4, 200


@dataclass(frozen=True)
class Row:
    """The nights of one taste and seed, one after the other in one state directory."""

    taste: str
    seed: int
    nights: int
    flipped: float = 0.0
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.taste}-{self.seed}" + "-flipped" * bool(self.flipped) + "-quick" * self.quick


def rows(quick: bool) -> list[Row]:
    """The grid: in full seed 0, quickly seeds 0 to 2."""
    seeds = (0, 1, 2) if quick else (0,)
    grid = [Row(taste, seed, 2, quick=quick) for seed in seeds for taste in ("concise", "structured", "warm")]
    return [*grid, *(Row("concise", seed, 1, flipped=0.25, quick=quick) for seed in seeds)]


def main() -> None:
    """Runs what has no line yet, then prints the table of all lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="nights of `trainer refresh --quick`, seeds 0 to 2"
    )
    parser.add_argument("--only", help="run only the row of this name")
    parser.add_argument("--home", type=Path, default=Path("var/learning"), help="state directories")
    parser.add_argument("--out", type=Path, default=Path("var/learning.jsonl"), help="one line a night")
    arguments = parser.parse_args()
    wanted = {row.name: row for row in rows(arguments.quick)}
    if arguments.only not in (None, *wanted):
        parser.error(f"There is no row {arguments.only!r} - use {', '.join(wanted)}.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for row in wanted.values():
        if arguments.only in (None, row.name):
            run_row(row, arguments.home.absolute() / row.name, arguments.out)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    print("\n".join(as_table(list(read(arguments.out)))))


def run_row(row: Row, home: Path, out: Path) -> None:
    """The nights of a row that have no line yet."""
    done = {(line["name"], line["night"]) for line in read(out)}
    for night in range(1, row.nights + 1):
        if (row.name, night) not in done:
            line = {"name": row.name, "night": night, **asdict(row), **run_night(row, night, home)}
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line, indent=1), flush=True)


def run_night(row: Row, night: int, home: Path) -> dict[str, Any]:
    """A day of rankings, a night, a morning's measurement."""
    os.environ["NIGHTSCHOOL_HOME"] = str(home)
    practice, unseen = part_prompts(home)
    taste, began_at = ("--taste", row.taste), commit()
    simulated = rank(row, TURNS * night - rankings(home), 10 * row.seed + night, practice)
    settings = [f"--seed={row.seed}", f"--practice={practice}", *["--quick"] * row.quick]
    over = ended()
    if len(over) >= night:  # stopped while it was measured
        refreshed, run, was_interrupted = 0.0, over[night - 1], True
    else:
        refreshed, run, was_interrupted = refresh(settings)
    folder = home / "runs" / run["id"]
    report = json.loads((folder / "report.json").read_text())
    before = report["parent"]
    now = trainer("versions")[1]["serving"]["current"]
    history = folder / "ppo.json"  # missing where no judge was fit to judge
    curve = json.loads(history.read_text()) if history.is_file() else []
    models = ("accuracy", "accuracy_interval", "always_longest")
    return {
        "state": run["state"],
        "was_interrupted": was_interrupted,
        "reason": run["reason"],
        "serves": now,
        "simulate_seconds": round(simulated),
        "refresh_seconds": round(refreshed or sum(report["seconds"].values())),
        "seconds": report["seconds"],
        "peak_memory_gib": report["peak_memory_gib"],
        "reward": {k: report["reward"][k] for k in models},
        "judge": {k: report["judge"][k] for k in models},
        "against_base": held_against(taste, unseen, "base", now),
        "against_before": held_against(taste, unseen, before, now) if night > 1 else None,
        "base_best_of_4": best_of_4(taste, unseen) if row.taste == "warm" and night == 1 else None,
        "curve": [{k: m[k] for k in ("score", "judge", "kl", "length")} for m in curve],
        "commit": began_at,
    }


def rank(row: Row, missing: int, seed: int, practice: Path) -> float:
    """As many rankings as the day lacks; the seconds it took. A day that was stopped goes on elsewhere."""
    if missing <= 0:
        return 0.0
    seed += 1000 * (TURNS - missing)  # other prompts than those that were asked before it was stopped
    flags = [f"--turns={missing}", f"--replies={REPLIES}", f"--prompts={practice}", f"--seed={seed}"]
    return trainer("simulate", f"--taste={row.taste}", *flags, f"--flip={row.flipped}")[0]


def ended() -> list[dict[str, Any]]:
    """The runs that came to a verdict, the oldest first."""
    return [run for run in trainer("runs")[1][::-1] if run["state"] in ("published", "refused")]


def refresh(settings: list[str]) -> tuple[float, dict[str, Any], bool]:
    """Seconds of a new run, or of the rest of an interrupted one; the run; whether it was interrupted."""
    runs = trainer("runs")[1][::-1]
    killed = [run["id"] for run in runs if run["state"] in ("running", "interrupted")]
    seconds, run = trainer("refresh", *([f"--resume={killed[0]}"] if killed else settings))
    return seconds, run, bool(killed)


def rankings(home: Path) -> int:
    """How many there are in a state directory."""
    if not (home / "nightschool.db").is_file():
        return 0
    done = subprocess.run(
        [sys.executable, "-m", "data", "stats", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout)["rankings"])


def part_prompts(home: Path) -> tuple[Path, Path]:
    """The practice prompts in two files: what people ask and PPO practises on, and what nothing sees."""
    from data.prompts import practice_prompts

    home.mkdir(parents=True, exist_ok=True)
    prompts = random.Random(0).sample(practice_prompts(), len(practice_prompts()))
    files = (home / "practice.jsonl", home / "unseen.jsonl")
    for file, chosen in zip(files, (prompts[UNSEEN:], prompts[:UNSEEN]), strict=True):
        file.write_text("".join(json.dumps({"prompt": list(p.messages)}) + "\n" for p in chosen))
    return files


def held_against(taste: tuple[str, str], prompts: Path, first: str, second: str) -> dict[str, Any] | None:
    """What `second` is worth against `first`; None where nothing new serves."""
    if first == second:
        return None
    report = trainer("measure", *taste, f"--versions={first},{second}", f"--prompts={prompts}")[1]
    return {**report["versions"][second], "first_taste_mean": report["versions"][first]["taste_mean"]}


def best_of_4(taste: tuple[str, str], prompts: Path) -> float:
    """The mean taste of the best of four replies of the base."""
    report = trainer("measure", *taste, "--versions=base", f"--prompts={prompts}", "--samples=4")[1]
    return float(report["versions"]["base"]["best_of_taste"])


def trainer(*command: str) -> tuple[float, Any]:
    """Seconds and JSON output of one `trainer` command; its progress goes to the terminal."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 5):
        sys.exit(f"trainer {command[0]} ended with {done.returncode}: {done.stdout}")
    return time.monotonic() - started, json.loads(done.stdout)


def read(out: Path) -> Iterator[dict[str, Any]]:
    """The lines there are."""
    if out.is_file():
        yield from (json.loads(line) for line in out.read_text().splitlines())


def as_table(lines: list[dict[str, Any]]) -> list[str]:
    """A Markdown line a night."""
    table = [
        "| row | night | commit | refresh | reward / judge accuracy | gate | decisive against base | ties "
        "| taste (base) | KL | against the night before |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        base = line["against_base"]
        took = "in parts" if line["was_interrupted"] else f"{line['refresh_seconds'] / 60:.1f} min"
        table.append(
            f"| {line['name']} | {line['night']} | {line['commit']} | {took} "
            f"| {line['reward']['accuracy']:.0%} / {line['judge']['accuracy']:.0%} | {line['state']} "
            f"| {share(base)} | {worth(base)} | {share(line['against_before'])} |"
        )
    return table


def worth(figures: dict[str, Any] | None) -> str:
    """Ties, the mean taste beside the base's, and the distance from the base."""
    if not figures:
        return "- | - | -"
    taste = f"{figures['taste_mean']:.2f} ({figures['first_taste_mean']:.2f})"
    return f"{figures['ties']:.0%} | {taste} | {figures['kl']:.1f}"


def share(figures: dict[str, Any] | None) -> str:
    """A decisive win rate with its interval."""
    if not figures or figures["decisive_win_rate"] is None:
        return "-"
    low, high = figures["decisive_win_rate_interval"]
    return f"**{figures['decisive_win_rate']:.1%}** [{low:.0%}, {high:.0%}]"


if __name__ == "__main__":
    main()
