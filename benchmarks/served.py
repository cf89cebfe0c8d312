"""Servers for load.py, each in a process of its own with a state directory and keys of its own.

`paced_server` is the API before the tiny model of the tests, which ends no reply and is held back to so many
tokens a second: what it takes longer is the server's own work. `whole_server` is `chatbot serve`.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from clients import Client

from chatbot.accounts import make_key
from chatbot.basemodel import load_base
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.generation import Generation
from chatbot.metrics import Metrics
from chatbot.runner import LlamaRunner
from chatbot.turns import Turns
from chatbot.web import Site, mount_api, open_site
from data import people
from data.cli import ENVIRONMENT
from data.database import open_database
from data.home import Home, open_home

ROOT = Path(__file__).parent.parent
START_SECONDS = 180.0
END_SECONDS = 20.0


@dataclass(frozen=True)
class Server:
    """A server that answers, and somebody's keys to it."""

    url: str
    process: "subprocess.Popen[str]"
    home: Home
    clients: list[Client]


def tiny_model(directory: Path) -> Path:
    """The tests' tiny model, made if need be."""
    sys.path.append(str(ROOT))  # the tests are no part of what is installed
    from tests.tiny import make_tiny_model

    return directory if directory.is_dir() else make_tiny_model(directory)


@contextmanager
def paced_server(
    model: Path, home: Home, *, rate: float, rows: int, waiting: int, people: int
) -> Iterator[Server]:
    """The API before the paced tiny model, until the block ends; then `times` of it can be read."""
    command = [sys.executable, __file__, "--model", str(model), "--rate", str(rate)]
    command += ["--rows", str(rows), "--waiting", str(waiting)]
    with running(command, home, people) as server:
        yield server


@contextmanager
def whole_server(model: str | None, home: Home, *flags: str, people: int) -> Iterator[Server]:
    """`chatbot serve` on a free port, until the block ends."""
    command = [sys.executable, "-m", "chatbot", "serve", "--port", "0", *flags]
    with running(command + (["--model", model] if model else []), home, people) as server:
        yield server


@contextmanager
def running(command: list[str], home: Home, count: int) -> Iterator[Server]:
    """A child that prints its address and then `Ready`, with keys for `count` people."""
    keys = make_keys(home, count)
    log = home.root / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, **os.environ, "NIGHTSCHOOL_HOME": str(home.root)},
        )
    try:
        url = _when_ready(process, log)
        yield Server(url, process, home, [Client(url, key) for key in keys])
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_keys(home: Home, count: int) -> list[str]:
    """An API key for each of so many people, who are made here too."""
    db = open_database(home)
    try:
        named = [f"client-{number}" for number in range(count)]
        return [make_key(db, people.by_name(db, name) or people.add(db, name), "load")[0] for name in named]
    finally:
        db.close()


def _when_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        said = log.read_text()
        if (found := re.search(r"http://127\.0\.0\.1:\d+", said)) and "Ready" in said:
            return found[0]
        time.sleep(0.1)
    sys.exit(f"The server did not become ready: {log.read_text()[-2000:]}")


def times(home: Home) -> dict[int, tuple[float, float]]:
    """Of a paced server that has ended: seed -> when the engine got the request, and its first token."""
    return {int(seed): (asked, first) for seed, asked, first in json.loads(_times(home).read_text())}


def _times(home: Home) -> Path:
    return home.root / "times.json"


# The child: a paced server


def main() -> None:
    """Serve until told to end, then write down when the engine did what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, required=True, help="tokens a second of each reply, at most")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--waiting", type=int, required=True)
    arguments = parser.parse_args()
    home = open_home()
    base = load_base(arguments.model, home, tell=lambda line: None)
    base.format.end_of_turn = -1  # no token, so no reply ends early
    hold_back(arguments.rate)
    engine = Engine(base, precision="float32", max_rows=arguments.rows, max_waiting=arguments.waiting)
    asked: list[Generation] = []
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn ends by it, and hands it on when it has
    engine.start()
    asyncio.run(serve(engine, home, asked))
    engine.close()
    firsts = [(g.replies[0].seed, g.submitted_at, g.replies[0].first_token_at) for g in asked]
    _times(home).write_text(json.dumps([row for row in firsts if row[2] is not None]))


def hold_back(rate: float) -> None:
    """Let no step begin sooner after the last one than a token of that rate takes."""
    step, soonest = LlamaRunner.step, 0.0

    def paced(self: LlamaRunner, beside: int = 0) -> None:
        nonlocal soonest
        time.sleep(max(0.0, soonest - time.monotonic()))
        soonest = time.monotonic() + 1 / rate
        step(self, beside)

    LlamaRunner.step = paced


async def serve(engine: Engine, home: Home, asked: list[Generation]) -> None:
    """The API without the pages, until SIGTERM; every request that has ended is put into `asked`."""
    db = open_database(home)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock:
        site = Site(db, home, ServeConfig(port=sock.getsockname()[1]), Metrics(db))
        app, site.turns = open_site(site), Turns(db, engine)
        site.metrics.turns = site.turns

        def note(generation: Generation) -> None:
            asked.append(generation)
            site.metrics.count(generation)

        engine.ended = note
        mount_api(app, site.turns)
        config = uvicorn.Config(
            app, lifespan="off", log_level="critical", access_log=False, timeout_graceful_shutdown=2
        )
        print(site.config.url, "Ready", flush=True)
        await uvicorn.Server(config).serve(sockets=[sock])
    db.close()


if __name__ == "__main__":
    main()
