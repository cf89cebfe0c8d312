"""The API on a real port, for the tests of /v1: uvicorn in a thread, the tiny model behind it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn

from chatbot.accounts import make_key
from chatbot.config import ServeConfig
from chatbot.interface import AnyEngine
from chatbot.metrics import Metrics
from chatbot.runner import LlamaRunner
from chatbot.turns import Turns
from chatbot.web import Site, mount_api, open_site
from data.database import Database
from data.home import Home
from tests.stories import somebody
from tests.waiting import until

HELLO = [{"role": "user", "content": "Hello there."}]


@dataclass
class Api:
    """A running server and a key to it, of somebody called ada."""

    site: Site
    engine: AnyEngine
    url: str
    key: str

    def client(self, key: str | None = None) -> httpx2.Client:
        """Plain HTTP with the key of ada, or another."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)

    def ask(self, **fields: Any) -> httpx2.Response:
        """A request for one short greedy reply; `fields` replace or add to it."""
        body = {"model": "night-school", "messages": HELLO, "max_tokens": 4, "temperature": 0} | fields
        with self.client() as client:
            return client.post("/chat/completions", content=json.dumps(body))


@contextmanager
def running_api(db: Database, engine: AnyEngine, home: Home) -> Iterator[Api]:
    """The application without its pages, which these tests do not need."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        site = Site(db, home, ServeConfig(port=sock.getsockname()[1]), Metrics(db))
        app, site.turns = open_site(site), Turns(db, engine)
        site.metrics.turns, engine.ended = site.turns, site.metrics.count
        mount_api(app, site.turns)
        config = uvicorn.Config(app, lifespan="off", ws="none", log_level="critical", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        key, _ = make_key(db, somebody(db))
        yield Api(site, engine, f"{site.config.url}/v1", key)
        server.should_exit = server.force_exit = True
        thread.join()


def slow_steps(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> None:
    """Each token takes a while, so that a long reply outlasts a test."""
    step = LlamaRunner.step

    def slow(self: LlamaRunner, beside: int) -> None:
        time.sleep(seconds)
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", slow)
