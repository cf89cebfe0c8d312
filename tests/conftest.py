"""Fixtures: a state directory of its own for every test, its database, and the tiny real model.

Torch and SQLite are imported inside the fixtures that need them: tests of `data` start at once, and `make
gpu-check` runs where there is no sqlite-utils.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from data.home import Home, open_home

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from chatbot.basemodel import Base
    from chatbot.engine import Engine
    from chatbot.remote import RemoteEngine
    from data.database import Database
    from tests.browser import Server
    from tests.fake_vllm import FakeVllm


os.environ["TZ"] = "UTC"
"""The zone of schedules that name none, on whatever machine, and in the servers that tests start."""


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk, for `--model`."""
    from tests.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A real Chromium, for the tests of one file."""
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(
    browser: "Browser",
    tiny_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[tuple["Server", "Database"]]:
    """One server for the tests of a file, whose SITE are its flags, and its database."""
    from tests.browser import running_site

    with running_site(tiny_directory, tmp_path_factory.mktemp("site") / "var", *request.module.SITE) as site:
        yield site


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty state directory, also in $NIGHTSCHOOL_HOME."""
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "var"))
    return open_home()


@pytest.fixture
def db(home: Home) -> Iterator["Database"]:
    """The migrated database of `home`."""
    from data.database import open_database

    database = open_database(home)
    yield database
    database.close()


@pytest.fixture
def tiny_base(tiny_directory: Path, home: Home) -> "Base":
    """The tiny model as a Base."""
    from chatbot.basemodel import load_base

    return load_base(str(tiny_directory), home, lambda text: None)


@pytest.fixture
def engine(tiny_base: "Base") -> Iterator["Engine"]:
    """A running engine on the tiny model, in float32."""
    from chatbot.engine import Engine

    running = Engine(tiny_base, precision="float32")
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="session")
def ranked_database(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which simulated raters have ranked a hundred turns of the tiny model; copy it."""
    from chatbot.basemodel import load_base
    from chatbot.engine import Engine
    from data.database import open_database
    from tests.nights import rank_by_taste

    home = open_home(tmp_path_factory.mktemp("ranked"))
    engine = Engine(load_base(str(tiny_directory), home, lambda text: None), precision="float32")
    engine.start()
    database = open_database(home)
    rank_by_taste(database, engine)
    database.close()
    engine.close()
    return home.database


@pytest.fixture
def ranked(home: Home, ranked_database: Path) -> Iterator["Database"]:
    """The database of `home`, with a hundred rankings in it."""
    from data.database import open_database

    shutil.copy(ranked_database, home.database)
    database = open_database(home)
    yield database
    database.close()


@pytest.fixture
def adapter(tiny_base: "Base", tmp_path: Path) -> Path:
    """The directory of an adapter that makes the tiny model say something else."""
    from tests.adapter_files import write_adapter

    return write_adapter(tmp_path / "adapter", tiny_base.config, size=0.5)


@pytest.fixture
def servers(tiny_base: "Base", monkeypatch: pytest.MonkeyPatch) -> Iterator[list["FakeVllm"]]:
    """Two servers of the tiny model behind vLLM's routes, looked after often and asked little."""
    from chatbot import base_canary, replicas
    from tests.fake_vllm import two_servers

    monkeypatch.setattr(base_canary, "TOKENS", 4)
    monkeypatch.setattr(replicas, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(replicas, "REFUSED_SECONDS", 0.02)
    with two_servers(tiny_base) as made:
        yield made


@pytest.fixture
def remote(tiny_base: "Base", servers: list["FakeVllm"], home: Home) -> Iterator["RemoteEngine"]:
    """An engine on both servers."""
    from tests.fake_vllm import engine_on

    with engine_on(tiny_base, servers, home.adapters) as engine:
        yield engine
