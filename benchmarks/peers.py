"""Measurements of ours and of peers: each in a process of its own, one after the other, and remembered.

A peer needs other libraries than we do, and a peak of memory belongs to one process; so a measurement is a
command that prints a line of JSON. Its result is kept under a name in a JSON file, and a second start goes on
where the first one ended. This file needs nothing but Python, since the processes of peers import it too.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Result = dict[str, Any]
Answer = Callable[[list[Any], str], tuple[dict[str, float], list[list[int]]] | None]


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="base model: a directory or a hub id; the embedded default if left out"
    )
    return parser


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of the benchmarks beside TRL."""
    parser = parser_for(description)
    parser.add_argument("--peer", type=Path, help="python of the venv that has TRL")
    parser.add_argument("--depth", type=float, help=argparse.SUPPRESS)  # of the child's adapters
    parser.add_argument("--precisions", default="float32,bfloat16", help="number formats of the frozen base")
    return parser


def sides_of(arguments: argparse.Namespace, known: Iterable[str]) -> list[str]:
    """The sides that are asked for. Ends, before anything is measured, where one of them cannot be."""
    sides = str(arguments.sides).split(",")
    for side in sides:
        if side not in known:
            sys.exit(f"There is no side {side!r} - use {', '.join(known)}.")
        if side != "ours" and arguments.peer is None:
            sys.exit("Where is TRL? - give --peer, the python of its venv, or --sides ours.")
    return sides


def measured(cache: Path, name: str, command: Sequence[str], settings: Mapping[str, str]) -> Result:
    """What `command` prints, or what it printed when `name` was measured before.

    A process of ours imports this checkout, one of a peer only what its own environment holds. `settings` are
    environment variables besides, for each side those of its own commands. With the result go the machine's
    load when it began, so that a figure from a busy machine is known as one, and what `origins` tells.
    """
    if (found := read(cache)).get(name):
        return {**found[name], "name": name}
    load, at, started = os.getloadavg()[0], commit(), time.monotonic()
    print(f"Measuring {name} (load {load:.1f}).", file=sys.stderr, flush=True)
    environment = {**settings, **os.environ}
    environment.pop("PYTHONPATH", None)
    if command[0] == sys.executable:
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}: {done.stdout[-2000:]}")
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    model = Path(dict(itertools.pairwise(command)).get("--model", "")).name
    result |= {"load": round(load, 1), "threads": threads, "wall_seconds": round(time.monotonic() - started)}
    result |= {"commit": at, "model": model}
    part = cache.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({**read(cache), name: result}, indent=1))
    part.rename(cache)
    return {**result, "name": name}


def commit() -> str:
    """The commit of this checkout, with `-dirty` where files that git knows have been changed since."""
    with suppress(FileNotFoundError):  # there is no git
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"


def origins(results: Iterable[Result]) -> str:
    """What stands under a table: the commit, threads and model of each result of `measured`."""
    named: dict[str, list[str]] = {}
    for result in results:
        threads = result.get("threads", "?")
        how = f"commit {result.get('commit', 'unknown')}, {threads} thread" + "s" * (threads != 1)
        how += f", {result['model']}" if result.get("model") else ""
        named.setdefault(how, []).append(result["name"])
    head = f"This is commit {commit()} - to measure anew what is kept of another, name another --out."
    return "\n".join([head, "", *(f"- {how}: {'; '.join(names)}" for how, names in named.items())])


def answered(work: Sequence[dict[str, Any]], answer: Answer) -> Result:
    """What the scenes of every round took but for the first round, which warms up; the tokens of the last.

    `work` is what workload.py makes. `answer` gets a scene's requests and a name that no other scene has. It
    returns figures and the tokens of each request's first reply, or None for a scene that is not its own.
    """
    result: Result = {}
    for number, scenes in enumerate(work):
        for name, requests in scenes.items():
            if (done := answer(requests, f"{number} {name}")) is None:
                continue
            figures, tokens = done
            assert [len(ids) for ids in tokens] == [one["new"] for one in requests], "a reply ended early"
            if number:
                told = result.setdefault(name, {key: [] for key in figures})
                for key, value in figures.items():
                    told[key].append(value)
                if len(requests) > 1:
                    result["tokens"] = tokens
    return result


def peak_memory_gib() -> float:
    """The most that this process has held: of the GPU where it used one, else of the machine."""
    torch = sys.modules.get("torch")  # imported by whoever computed with it
    gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0
    return float(gpu / 2**30 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def read(cache: Path) -> dict[str, Result]:
    """All results of a cache, by name."""
    return dict(json.loads(cache.read_text())) if cache.is_file() else {}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ratio(ours: float | None, theirs: float | None) -> str:
    """How many times as much the peer needs; a dash where one of them is not measured."""
    return f"**{theirs / ours:.1f}x**" if ours and theirs else "-"


def figure(value: float | None, digits: int = 1) -> str:
    """A number for a table; a dash for one that is not measured."""
    return "-" if value is None else f"{value:.{digits}f}"
