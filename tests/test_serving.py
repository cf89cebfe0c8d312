"""What runs behind the pages: the trainer learns what they serve, and where the engine breaks, all ends."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatbot.basemodel import Base
from chatbot.config import ServeConfig
from chatbot.engine import Engine
from chatbot.flags import add_flags, from_flags
from chatbot.metrics import Metrics
from chatbot.remote import RemoteEngine
from chatbot.serving import LoadedServer, Trainer, engine_for, trainer_command
from chatbot.turns import Turns
from data.database import Database
from data.home import Home
from tests.adapter_files import make_version
from tests.test_following import publish
from tests.waiting import until
from trainer.__main__ import _parser
from trainer.commands import config_from
from trainer.config import RefreshConfig


def watching(command: list[str]) -> RefreshConfig:
    """What the trainer makes of the flags it is started with."""
    return config_from(_parser().parse_args(command[command.index("watch") :]))


@contextmanager
def serving(db: Database, home: Home, config: ServeConfig) -> Iterator[LoadedServer]:
    made = LoadedServer(db, home, config, Metrics(db))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("flag, longest", [(0, 128), (40, 40), (700, 512)])
def test_nights_practise_replies_as_long_as_those_that_people_rank(
    db: Database, home: Home, tiny_directory: Path, flag: int, longest: int
) -> None:
    """A night takes no more than half of the context, here 1,024 tokens, for a reply."""
    with serving(db, home, ServeConfig(model=str(tiny_directory), max_new_tokens=flag)) as one:
        assert one.trainer
        assert watching(one.trainer._command).max_new_tokens == longest


@pytest.mark.parametrize("threads, half", [(0, 0), (1, 1), (4, 2), (5, 2)])
def test_the_trainer_has_the_half_of_the_threads_that_the_engine_leaves(threads: int, half: int) -> None:
    assert watching(trainer_command(ServeConfig(threads=threads))).threads == half


def test_a_trainer_that_cannot_be_started_is_tried_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chatbot.serving.TRAINER_PAUSE_SECONDS", 0.01)
    trainer = Trainer(home, ServeConfig())
    trainer._command = [str(home.root / "no-python")]
    trainer.start()
    until(lambda: "could not be started (No such file or directory); it is started again" in caplog.text)
    trainer._command = [sys.executable, "-c", "import time; time.sleep(600)"]
    until(lambda: trainer._child is not None and trainer._child.poll() is None)
    assert trainer._thread.is_alive() and trainer._child
    trainer.close()
    assert trainer._child.poll() == -signal.SIGTERM and not trainer._thread.is_alive()


def test_replies_over_vllm_are_as_long_as_on_a_gpu_here(
    db: Database, home: Home, tiny_base: Base, engine: Engine
) -> None:
    remote = RemoteEngine(tiny_base, ["http://127.0.0.1:9"], home.adapters)
    assert Turns(db, remote).sampling.max_new_tokens == 256
    assert Turns(db, engine).sampling.max_new_tokens == 128


@pytest.mark.parametrize("servers, rows", [("", 5), ("http://127.0.0.1:9,http://127.0.0.1:10", 10)])
def test_the_rows_and_the_queue_that_are_asked_for_are_the_engines(
    home: Home, tiny_base: Base, servers: str, rows: int
) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeConfig)
    flags = ["--rows", "5", "--queue", "7", "--precision", "float32", "--engine", servers]
    engine = engine_for(tiny_base, home, from_flags(parser.parse_args(flags), ServeConfig))
    assert (engine.max_waiting, engine.room) == (7, rows + 7)
    usual = engine_for(tiny_base, home, ServeConfig(precision="float32"))
    assert (usual.max_waiting, usual.room) == (32, 64 + 32)


BREAKING = """
import sys, time
from pathlib import Path
from chatbot.__main__ import main
from chatbot.engine import Engine

def until_told(engine):
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

Engine._round = until_told
sys.exit(main(sys.argv[2:]))
"""
"""`chatbot` with an engine that breaks as soon as there is a certain file."""


def test_a_server_whose_engine_broke_ends_so_that_it_is_started_again_and_its_log_says_what_served(
    db: Database, home: Home, tiny_base: Base, tiny_directory: Path, tmp_path: Path
) -> None:
    sign, log = tmp_path / "break", tmp_path / "log"
    flags = ["serve", "--model", str(tiny_directory), "--precision", "float32", "--no-trainer", "--port", "0"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", BREAKING, str(sign), *flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NIGHTSCHOOL_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
        )
    try:
        until(lambda: "Ready" in log.read_text(), 240)
        publish(db, make_version(db, home, tiny_base).name)
        until(lambda: "chatbot.following: Serving v000001." in log.read_text(), 240)
        sign.touch()
        assert server.wait(60) == 1
    finally:
        server.kill()
    said = log.read_text()
    assert "an illegal memory access" in said and "The engine broke, so the server ends" in said
    assert "httpx" not in said and "HTTP Request" not in said
