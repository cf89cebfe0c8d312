"""Does it learn? One night on the embedded model, from nothing: simulated raters, a refresh, a measurement.

    python benchmarks/night.py --taste concise                # about 45 minutes on two cores

Runs the same three commands that a person would (`trainer simulate`, `refresh`, `measure`) in a state
directory of its own, with their defaults, and prints the table of benchmarks/RESULTS.md: wall time by stage,
peak memory, the curve of PPO and what the new version is worth on prompts that no stage has seen.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
CURVE = ("score", "judge", "kl", "length", "eos_rate", "entropy", "approx_kl", "clip_fraction")


def main() -> None:
    """Three commands, one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--taste", default="concise", help="what the simulated raters like")
    parser.add_argument("--turns", type=int, default=100, help="how many turns they rank")
    parser.add_argument("--home", type=Path, default=Path("var/benchmark-night"), help="state directory")
    parser.add_argument("--prompts", type=Path, help="a JSONL file of unseen prompts to measure on")
    arguments = parser.parse_args()
    os.environ["NIGHTSCHOOL_HOME"] = str(arguments.home)

    simulated, _ = trainer(
        "simulate", "--taste", arguments.taste, f"--turns={arguments.turns}", "--replies=4"
    )
    refreshed, run = trainer("refresh")
    report = json.loads((arguments.home / "runs" / run["id"] / "report.json").read_text())
    curve = json.loads((arguments.home / "runs" / run["id"] / "ppo.json").read_text())
    prompts = arguments.prompts or unseen(arguments.home, run["id"])
    names = f"--versions=base,{run['version']}"
    measured, table = trainer("measure", "--taste", arguments.taste, names, "--prompts", str(prompts))

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"simulate {simulated:.0f} s, refresh {refreshed:.0f} s, measure {measured:.0f} s")
    print("refresh by stage:", report["seconds"], f"peak memory {report['peak_memory_gib']} GiB")
    print(f"{run['state']}: {run['reason']}")
    print_curve(curve)
    print(json.dumps(table, indent=1))


def trainer(*command: str) -> tuple[float, Any]:
    """Seconds and JSON output of one `trainer` command; its progress goes to the terminal."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 5):
        sys.exit(f"trainer {command[0]} ended with {done.returncode}: {done.stdout}")
    return time.monotonic() - started, json.loads(done.stdout)


def unseen(home: Path, run_id: str, count: int = 200) -> Path:
    """Practice prompts that were neither ranked nor practised on, nor given to the reference."""
    from chatbot.basemodel import load_base
    from data.comparisons import read_snapshot
    from data.database import Database
    from data.home import Home
    from data.prompts import practice_prompts
    from trainer.config import RefreshConfig
    from trainer.practice import practice, reference_prompts

    base = load_base(None, Home(home.absolute()))
    turns = read_snapshot(home / "runs" / run_id / "snapshot.jsonl").turns
    used = practice(Database(home / "nightschool.db"), base, RefreshConfig(), turns)
    used += reference_prompts(base, RefreshConfig())
    seen = {tuple(ids) for ids in used} | {tuple(base.format.encode(turn.prompt)) for turn in turns}
    left = [p for p in practice_prompts() if tuple(base.format.encode(p.messages)) not in seen]
    path = home / "unseen.jsonl"
    path.write_text("".join(json.dumps({"prompt": list(p.messages)}) + "\n" for p in left[:count]))
    return path


def print_curve(curve: list[dict[str, float]]) -> None:
    """One line an update."""
    print("update " + " ".join(f"{name:>13}" for name in CURVE))
    for update, metrics in enumerate(curve):
        print(f"{update:>6} " + " ".join(f"{metrics.get(name, float('nan')):>13.3f}" for name in CURVE))


if __name__ == "__main__":
    main()
