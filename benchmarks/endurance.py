"""An hour of everything at once before `chatbot serve`: do memory and slots stay flat? A part of load.py.

People talk in several turns and with several replies, some hang up in the middle, some send nonsense, every
half minute a crowd comes at once, somebody looks at /healthz and /readyz, and sixty times in all another
version is published, which the server finds in its database, verifies and serves. The process's memory,
threads and open files are noted meanwhile; at the end every slot must be free.

Left out: the pages in a browser (the tests have them) and the trainer (chatting.py has it).
"""

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from clients import MODEL, Client, Heard
from peers import table
from served import Server, whole_server
from swaps import write_adapter

from chatbot.basemodel import load_base
from data import versions
from data.database import open_database
from data.home import Home, open_home
from data.prompts import practice_prompts
from trainer.canary import canaries
from trainer.publish import write_candidate

PEOPLE, TALKERS, LEAVERS = 12, 6, 2
CROWD, CROWD_SECONDS = 60, 30.0
CHANGES = SAMPLES = 60
MOST_GROWTH = 0.05
NONSENSE: tuple[object, ...] = (
    b"",
    b"{",
    b"[]",
    b'{"model": NaN}',
    {},
    {"model": MODEL, "messages": []},
    {"model": MODEL, "messages": [{"role": "user", "content": 7}]},
    {"model": MODEL, "messages": [{"role": "user", "content": "x" * 40_000}]},
    {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": -1},
    {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}], "temperature": 1e9},
    {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}], "n": 10},
    {"model": "v999999", "messages": [{"role": "user", "content": "Hello."}]},
)


def short_texts() -> list[str]:
    """Practice prompts of which three turns fit into the tiny model, where a character is a token."""
    texts = [prompt.messages[-1]["content"] for prompt in practice_prompts()]
    return [text for text in texts if len(text.encode()) <= 100]


@dataclass
class Hour:
    """What happened so far."""

    server: Server
    end: float
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    answered_by: set[str] = field(default_factory=set)
    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    """Minutes, bytes, threads, open files, requests running or waiting."""
    texts: list[str] = field(default_factory=short_texts)

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def client(self) -> Client:
        return random.choice(self.server.clients)

    def note(self, heard: Heard, what: str) -> None:
        """An answer, a refusal, or a problem."""
        if heard.is_whole:
            self.counts[what] += 1
            self.answered_by.add(heard.model or "")
        elif heard.is_refused:
            self.counts["told to come back later"] += 1
        else:
            self.problems[f"{what}: {heard.problem or heard.status}"] += 1


def run(folder: Path, model: str, minutes: float) -> int:
    """Load for so long; prints the tables. The exit code."""
    random.seed(0)
    home = open_home(folder / "home")
    names = publish_two(home, model, folder)
    with whole_server(model, home, "--no-trainer", people=PEOPLE) as server:
        hour = Hour(server, time.monotonic() + 60 * minutes)
        left = asyncio.run(_live(hour, names, minutes))
    tenth = len(hour.samples) / 10
    parts = [hour.samples[int(i * tenth) : int((i + 1) * tenth)] for i in range(10)]
    rows = [[f"{value:.1f}" for value in _medians(part)] for part in parts if part]
    print(table(["minute", "memory, MiB", "threads", "open files", "running or waiting"], rows))
    growth = float(rows[-1][1]) / float(rows[1][1]) - 1
    told = [[what, f"{count}"] for what, count in (hour.counts + hour.problems).most_common()]
    told += [["versions that answered", f"{len(hour.answered_by)}"], ["slots taken at the end", f"{left}"]]
    print(table(["", "count"], [*told, ["memory, last tenth to second", f"**{100 * growth:+.1f} %**"]]))
    return int(bool(hour.problems) or left > 0 or growth > MOST_GROWTH)


def publish_two(home: Home, model: str, folder: Path) -> list[str]:
    """Two versions of random numbers, with canaries, as the trainer would leave them."""
    base = load_base(model, home, tell=lambda line: None)
    db = open_database(home)
    names = []
    for seed in range(2):
        adapter = write_adapter(folder / f"adapter-{seed}", base, seed)
        with write_candidate(
            db,
            home,
            base,
            adapter_dir=adapter,
            run=None,
            parent="base",
            canary=canaries(base, adapter, practice_prompts(), seed=seed),
            snapshot_sha256=None,
            rankings=0,
        ) as candidate:
            names.append(candidate.appear(report={"why": "a load test"}, status="accepted").name)
    db.close()
    return names


async def _live(hour: Hour, names: list[str], minutes: float) -> int:
    """Everybody until the end; then how many slots are still taken."""
    actors = [_again(hour, _talk, 0.2) for _ in range(TALKERS)]
    actors += [_again(hour, _leave, 1.0) for _ in range(LEAVERS)]
    actors += [_again(hour, _blunder, 2.0), _again(hour, _look, 5.0), _again(hour, _crowd, CROWD_SECONDS)]
    actors += [_change(hour, names, 60 * minutes / CHANGES), _sample(hour, 60 * minutes / SAMPLES)]
    await asyncio.gather(*actors)
    deadline = time.monotonic() + 5
    while (left := sum(await _load(hour))) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return left


async def _again(hour: Hour, act: Callable[[Hour], Awaitable[None]], pause: float) -> None:
    """Do it until the end, with pauses of chance around `pause` seconds."""
    while not hour.is_over:
        await act(hour)
        await asyncio.sleep(min(random.expovariate(1 / pause), max(0.0, hour.end - time.monotonic())))


async def _talk(hour: Hour) -> None:
    """A conversation of one to three turns; the last has several replies now and then."""
    client, messages = hour.client(), []
    turns = random.randint(1, 3)
    for turn in range(turns):
        messages.append({"role": "user", "content": random.choice(hour.texts)})
        asked = {"model": MODEL, "messages": messages, "max_tokens": random.randint(8, 96), "stream": True}
        asked |= {"n": random.choice((1, 1, 2, 4)) if turn == turns - 1 else 1}
        asked |= {"stop": [" the"]} if random.random() < 0.2 else {}
        heard = await client.post(asked)
        hour.note(heard, "turns answered")
        if not heard.is_whole:
            return
        messages.append({"role": "assistant", "content": heard.text})


async def _leave(hour: Hour) -> None:
    heard = await hour.client().ask(
        random.choice(hour.texts), leave_after=random.randint(1, 8), max_tokens=200, n=random.randint(1, 4)
    )
    if heard.texts_at and not heard.problem:
        hour.counts["hung up in the middle"] += 1
    else:
        hour.note(heard, "hung up")


async def _blunder(hour: Hour) -> None:
    """Nonsense has an answer that says so."""
    heard = await hour.client().post(random.choice(NONSENSE))
    if 400 <= heard.status < 500:
        hour.counts["nonsense refused"] += 1
    else:
        hour.problems[f"nonsense: {heard.status} {heard.problem}"] += 1


async def _crowd(hour: Hour) -> None:
    asked = [hour.client().ask("Hello.", max_tokens=16) for _ in range(CROWD)]
    for heard in await asyncio.gather(*asked):
        hour.note(heard, "of a crowd answered")


async def _look(hour: Hour) -> None:
    for path in ("/healthz", "/readyz"):
        said = await asyncio.to_thread(hour.server.clients[0].get, path)
        is_well = '"ok"' in said or '"ready":true' in said
        (hour.counts if is_well else hour.problems)[f"{path}" if is_well else f"{path}: {said}"] += 1


async def _change(hour: Hour, names: list[str], pause: float) -> None:
    """Publish the two by turns; the server follows by itself."""
    db = open_database(hour.server.home)
    for name in itertools.cycle(names):
        if hour.end - time.monotonic() < pause:
            break
        versions.publish(db, name, actor="load", reason="A load test.")
        hour.counts["publications"] += 1
        await asyncio.sleep(pause)
    db.close()


async def _sample(hour: Hour, pause: float) -> None:
    process, began = psutil.Process(hour.server.process.pid), time.monotonic()
    while not hour.is_over:
        await asyncio.sleep(pause)
        minutes, load = (time.monotonic() - began) / 60, sum(await _load(hour))
        memory = process.memory_info().rss
        hour.samples.append((minutes, memory, process.num_threads(), process.num_fds(), load))


async def _load(hour: Hour) -> tuple[int, int]:
    return await asyncio.to_thread(hour.server.clients[0].load_now)


def _medians(part: list[tuple[float, int, int, int, int]]) -> list[float]:
    minutes, memory, *others = (statistics.median(column) for column in zip(*part, strict=True))
    return [minutes, memory / 2**20, *others]
