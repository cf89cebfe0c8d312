"""A vLLM server as Night School sees one, small enough for a test: the tiny real model behind vLLM's routes.

It answers with what the model says, adapters merged; for its base with what was loaded last, as vLLM does on
a CPU where others use that; and it can be told to misbehave. `die` cuts every
connection; a server made at the same port afterwards is one that came back with nothing loaded.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from chatbot.basemodel import Base
from chatbot.llama import Llama
from chatbot.models import merged_model
from chatbot.remote import RemoteEngine
from chatbot.runner import prepare, runner_for
from chatbot.sampling import Row
from data.records import Sampling
from tests.jobs import a_job
from tests.waiting import until

NAME = "the-base"
_TEXT = "one\u2028two\u2029three\x85"
"""What each piece says in words, which nobody reads: JSON leaves these characters as they are."""
_MODEL = threading.Lock()
"""Transformers cannot load two models at once."""
_LOADED: dict[tuple[Path, Path | None], Llama] = {}


def _weights(base: Base, directory: Path | None) -> Llama:
    """The tiny model with an adapter, loaded once."""
    with _MODEL:
        if (base.directory, directory) not in _LOADED:
            model = merged_model(base, directory, device=torch.device("cpu"), dtype=torch.float32)
            weights = prepare(model, "float32")
            assert isinstance(weights, Llama)
            _LOADED[base.directory, directory] = weights
        return _LOADED[base.directory, directory]


class FakeVllm:
    """Serves from its construction until `die`."""

    def __init__(self, base: Base, *, port: int = 0, context: int = 1024, pause: float = 0.0) -> None:
        """`pause`: seconds between two tokens."""
        self.base = base
        self.context = context
        self.pause = pause
        self.adapters: dict[str, Path] = {}
        self.asked: list[dict[str, Any]] = []
        """The bodies of all requests for replies, in order."""
        self.loaded: list[str] = []
        """What was ever loaded, in order."""
        self.is_foreign = False
        """Be another web server."""
        self.refuses: str | None = None
        """Why it loads no adapter."""
        self.can_load = True
        """Whether runtime loading was enabled at its start."""
        self.ignores_adapters = False
        """Answer with the base whatever adapter is asked for: what a stale cache does."""
        self.rounds_by = 0.0
        """Nats, by which every token is likelier than it says while it writes: so far off may bfloat16 be."""
        self.is_hung = False
        """Take connections and never answer."""
        self.breaks_after: int | None = None
        """Cut the connection after so many tokens of a reply."""
        self.fails_with: int | None = None
        """The status of every request for a reply, and of every question how likely one is."""
        self.fails_after: int | None = None
        """Send an error after so many tokens of a reply, and end it in good order."""
        self.forgets: tuple[int, int] | None = None
        """A seed, and after how many tokens its reply is written no more, though its connection stays."""
        self.sends: object = None
        """In the place of every piece of a reply, and of how likely one is."""
        self.is_ill = False
        """Answer, and say that the engine is not well."""
        self.may_work = threading.Event()
        """Cleared, it says that it is well, and does nothing that it is asked for."""
        self.may_work.set()
        self.waiting = 0
        """How much of that there is."""
        self.writing = 0
        self._connections: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def versions(self) -> list[str]:
        """The adapters that are loaded, but for the one that changes nothing."""
        return [name for name in self.adapters if not name.startswith("base-")]

    def die(self) -> None:
        """Cut every connection and listen no more. Twice is harmless."""
        self.is_hung = False  # or what hangs would look for ever whether it still does
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def weights(self, model: str) -> Llama | None:
        """What answers for `model`; None where it is not loaded."""
        if model != NAME and model not in self.adapters:
            return None
        if self.ignores_adapters:
            return _weights(self.base, None)
        return _weights(self.base, self.adapters.get(model) or next(reversed(self.adapters.values()), None))

    def tokens(self, weights: Llama, body: dict[str, Any]) -> Iterator[Row]:
        """The row of a reply after each of its tokens."""
        runner = runner_for(weights, body["stop_token_ids"][0])
        sampling = Sampling(body["temperature"], body["top_p"], body["max_tokens"])
        job = a_job(body["prompt"], [body["seed"]], sampling)
        runner.add(job)
        while not runner.is_idle:
            time.sleep(self.pause)
            with _MODEL:
                runner.step()
            yield job.rows[0]


def slowed(servers: list[FakeVllm], pause: float = 0.05) -> None:
    """Replies take a while from now on: `pause` seconds a token at least, so that one of hundreds outlasts
    whatever a busy machine keeps a test from meanwhile."""
    for server in servers:
        server.pause = pause


@contextmanager
def two_servers(base: Base) -> Iterator[list[FakeVllm]]:
    """Two servers of `base`; more may be added to the list. All die in the end."""
    made = [FakeVllm(base) for _ in range(2)]
    yield made
    for server in made:
        server.die()


@contextmanager
def engine_on(base: Base, servers: list[FakeVllm], shared: Path) -> Iterator[RemoteEngine]:
    """An engine with all of `servers` up."""
    urls = [server.url for server in servers]
    engine = RemoteEngine(base, urls, shared, dtype=torch.float32, patience=30)
    engine.start()
    until(lambda: len(engine._replicas.up) == len(servers))
    yield engine
    engine.close()


class _Server(ThreadingHTTPServer):
    owner: FakeVllm
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # a crowd connects at once, and a connection that finds no place waits a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that is cut is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.owner._connections.add(self.connection)

    def finish(self) -> None:
        self.server.owner._connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the tests' output."""

    def do_GET(self) -> None:
        owner = self._awake()
        if owner.is_foreign:
            return self._send(404, {"detail": "Not Found"})
        if self.path == "/health":
            return self._send(503 if owner.is_ill else 200, None)
        cards = [{"id": NAME, "parent": None, "max_model_len": owner.context}]
        cards += [
            {"id": name, "parent": NAME, "root": str(path), "max_model_len": None}
            for name, path in owner.adapters.items()
        ]
        self._send(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        owner = self._awake()
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        owner.waiting += 1
        owner.may_work.wait(120)
        owner.waiting -= 1
        if self.path == "/v1/completions":
            self._complete(owner, body)
        elif not owner.can_load:
            self._send(404, {"detail": "Not Found"})
        elif self.path == "/v1/unload_lora_adapter":
            gone = owner.adapters.pop(body["lora_name"], None)
            self._send(200, None) if gone else self._refuse(404, "cannot be found.")
        elif owner.refuses:
            self._refuse(500, owner.refuses)
        elif body["lora_name"] in owner.adapters:
            self._refuse(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        else:
            owner.loaded.append(body["lora_name"])
            owner.adapters[body["lora_name"]] = Path(body["lora_path"])
            self._send(200, None)

    def _complete(self, owner: FakeVllm, body: dict[str, Any]) -> None:
        weights = owner.weights(body["model"])
        if weights is None:
            return self._refuse(404, f"The model `{body['model']}` does not exist.")
        if body.get("stream"):
            owner.asked.append(body)
        if owner.fails_with:
            return self._refuse(owner.fails_with, "that is how it is")
        if not body.get("stream"):
            return self._score(weights, body)
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        owner.writing += 1
        try:
            for row in owner.tokens(weights, body):
                if (body["seed"], len(row.token_ids) - 1) == owner.forgets:
                    self.connection.recv(1)  # until the other side hangs up, or `die` does
                    return
                if len(row.token_ids) - 1 == owner.breaks_after:
                    return self.connection.shutdown(socket.SHUT_RDWR)
                if len(row.token_ids) - 1 == owner.fails_after:
                    self._chunk(f"data: {json.dumps(_error(500, 'that is how it is'))}\n\n")
                    break
                logprobs = {"token_logprobs": row.logprobs[-1:]}
                choice = {"token_ids": row.token_ids[-1:], "logprobs": logprobs, "text": _TEXT}
                choice["finish_reason"] = row.finish_reason
                piece = {"choices": [choice]} if owner.sends is None else owner.sends
                self._chunk(f"data: {json.dumps(piece, ensure_ascii=False)}\n\n")
            self._chunk(f"data: {json.dumps({'choices': [], 'usage': {}})}\n\n")
            self._chunk("data: [DONE]\n\n")
            self._chunk("")
        finally:
            owner.writing -= 1

    def _score(self, weights: Llama, body: dict[str, Any]) -> None:
        """The one token that may come."""
        ids = [*body["prompt"], *body["allowed_token_ids"]]
        owner = self.server.owner
        logprobs = {"token_logprobs": (weights.logprobs(ids, len(ids) - 1) + owner.rounds_by).tolist()}
        sends = owner.sends
        self._send(200, {"choices": [{"logprobs": logprobs}]} if sends is None else sends)

    def _awake(self) -> FakeVllm:
        while self.server.owner.is_hung:
            time.sleep(0.02)
        return self.server.owner

    def _chunk(self, text: str) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(text.encode()), text.encode()))
        self.wfile.flush()

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, _error(status, message))

    def _send(self, status: int, body: object) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "code": status}}
