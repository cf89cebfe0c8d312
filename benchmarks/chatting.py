"""Chat while a refresh runs on the same cores: how much longer is a first token? A part of load.py.

`chatbot serve` with its trainer, as a person starts it. Somebody asks every few seconds for a short reply:
first with nothing else on the machine, then after a refresh was asked for as the operator's page does it.
Rankings come from `--home`, or simulated people make them first. The refresh is cancelled when the time is
over: this measures the chat, not the night.
"""

import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clients import Client, Heard
from peers import table
from served import whole_server

from data import people, rankings, requests, runs
from data.database import Database, open_database
from data.home import Home, open_home
from data.prompts import judging_prompts

IDLE_SECONDS = 120.0
PAUSE_SECONDS = 2.0
START_SECONDS = 60.0
TURNS, REPLY_TOKENS = 40, 32
IDLE = "idle"
WANTED = 2.0
"""So many times as long as idle may a first token take, at p95."""
Probes = list[tuple[str, Heard]]
"""The stage of the refresh, or `idle`, and what was heard."""


def run(folder: Path, model: str | None, directory: Path | None, minutes: float) -> int:
    """Measure for so long; prints the table. The exit code."""
    home = open_home(directory or folder / "home")
    db = open_database(home)
    if not rankings.count(db):
        _simulate(home, model)
    with whole_server(model, home, people=1) as server:
        probes = asyncio.run(_probe_all(db, server.clients[0], 60 * minutes))
    db.close()
    rows, is_well = report(probes)
    head = "stage,replies,first text: p50,p95,p95 to idle,ms a token,failed"
    print(table(head.split(","), rows))
    return 0 if is_well else 1


def _simulate(home: Home, model: str | None) -> None:
    """Simulated people who rank, in a process that ends before the server begins."""
    print(f"Simulated people rank {TURNS} turns.", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "trainer", "simulate", "--taste", "concise", "--turns", str(TURNS)]
    command += ["--model", model] if model else []
    environment = {**os.environ, "NIGHTSCHOOL_HOME": str(home.root)}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


async def _probe_all(db: Database, client: Client, seconds: float) -> Probes:
    """Idle first, then beside the refresh until it or the time is over."""
    questions = itertools.cycle(prompt.messages[-1]["content"] for prompt in judging_prompts())
    idle_end = time.monotonic() + min(IDLE_SECONDS, seconds)
    probes = await _probe(client, questions, lambda: IDLE if time.monotonic() < idle_end else None)
    del probes[:3]  # the very first replies of a server
    operator = people.by_name(db, "client-0")
    assert operator is not None, "whole_server made them"
    key = requests.ask(db, operator)
    deadline = time.monotonic() + START_SECONDS
    while requests.pending(db):
        if time.monotonic() > deadline:
            sys.exit("No trainer took the refresh up - look into server.log of the state directory.")
        await asyncio.sleep(0.2)
    found = next(one for one in runs.list_all(db) if one.key == key)
    end = time.monotonic() + seconds

    def stage() -> str | None:
        now = runs.get(db, found.id)
        is_on = now.state == "running" and time.monotonic() < end
        return (now.stage or "beginning") if is_on else None

    probes += await _probe(client, questions, stage)
    last = runs.get(db, found.id)
    if last.state == "running":
        runs.request_cancel(db, found.id)
    else:
        print(f"The refresh ended as {last.state}: {last.reason}", file=sys.stderr)
    return probes


async def _probe(
    client: Client, questions: "itertools.cycle[str]", stage: Callable[[], str | None]
) -> Probes:
    """One question after the other while `stage` names one."""
    probes: Probes = []
    while (name := stage()) is not None:
        probes.append((name, await client.ask(next(questions), max_tokens=REPLY_TOKENS)))
        await asyncio.sleep(PAUSE_SECONDS)
    return probes


def report(probes: Probes) -> tuple[list[list[str]], bool]:
    """A row for idle, the refresh and each of its stages; and whether chat stayed as it should."""
    idle = [heard for name, heard in probes if name == IDLE]
    beside = [(name, heard) for name, heard in probes if name != IDLE]
    parts = {IDLE: idle, "refresh": [heard for _, heard in beside]}
    for name, heard in beside:
        parts.setdefault(f"- {name}", []).append(heard)
    usual = _p95(idle)
    rows = [_row(name, part, usual) for name, part in parts.items() if part]
    is_well = bool(beside) and _p95(parts["refresh"]) <= WANTED * usual
    return rows, is_well and all(heard.is_whole for _, heard in probes)


def _row(name: str, part: list[Heard], usual: float) -> list[str]:
    whole = [heard for heard in part if heard.is_whole and heard.tokens > 1 and heard.texts_at]
    steps = [1000 * (h.texts_at[-1] - h.texts_at[0]) / (h.tokens - 1) for h in whole]
    first, late = statistics.median(heard.first_text for heard in whole), _p95(part)
    cells = [f"{first:.2f} s", f"{late:.2f} s", f"**{late / usual:.1f}x**", f"{statistics.median(steps):.0f}"]
    return [name, f"{len(part)}", *cells, f"{sum(not heard.is_whole for heard in part)}"]


def _p95(part: list[Heard]) -> float:
    firsts = sorted(heard.first_text for heard in part if heard.texts_at)
    return firsts[int(0.95 * (len(firsts) - 1))] if firsts else float("inf")
