"""The engine elsewhere: the same requests, versions and streams over one or several vLLM servers.

What runs next is decided here, as in engine.py and by the same scheduler: vLLM knows nothing of people. What
was let in goes to the server that writes the fewest replies (writing.py). A version is loaded on every server
and confirmed by what it computes before `serve` moves the pointer (replicas.py).

One thread with an event loop; the public methods are called from any other.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import torch

from chatbot.basemodel import Base
from chatbot.chatformat import Messages
from chatbot.generation import Asked, Generation, Kind
from chatbot.replicas import Replicas
from chatbot.scheduler import Scheduler
from chatbot.writing import Writing
from data.errors import Busy, NotFound
from data.records import BASE_VERSION, Sampling

T = TypeVar("T")

LOOK_SECONDS = 0.02
"""Between two looks at what was stopped, timed out or lost its server."""
PATIENCE_SECONDS = 300.0
"""How long the start waits for a server: one of vLLM's own takes minutes to load and compile a model."""


class RemoteEngine:
    """Serves replies of one base model in several versions from vLLM servers: see interface.py."""

    def __init__(
        self,
        base: Base,
        urls: Sequence[str],
        shared: Path,
        *,
        four_bit: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        max_waiting: int = 32,
        rows_per_server: int = 64,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Asks the servers of `base` at `urls`, which see the directory `shared` under the same path.

        four_bit, dtype: in what format they compute, which says how exact they must be.
        max_waiting: so many requests may queue before Busy.
        rows_per_server: so many replies a server writes at a time (its --max-num-seqs).
        patience: seconds that `start` waits for the first server.
        """
        self.base = base
        self.four_bit = four_bit
        self.dtype = dtype
        self.form = "nf4" if four_bit else str(dtype).removeprefix("torch.")
        self.device = torch.device("cpu")  # no tensor of ours is anywhere else
        self.follow: Callable[[Generation], None] = lambda generation: None
        """Hears of every request that was accepted."""
        self._replicas = Replicas(urls, base, shared, dtype=dtype, four_bit=four_bit)
        self._patience = patience
        self._lock = threading.Lock()
        self._scheduler = Scheduler(max_waiting, rows_per_server * len(urls))
        self._users = {BASE_VERSION: 0}  # version -> requests admitted and not yet ended
        self._serving = BASE_VERSION
        self._retired: set[str] = set()  # once served, now superseded: let go when unused
        self._closing = False
        self._wake = asyncio.Event()
        self._writing = Writing(self._replicas, base.format.end_of_turn, self._wake.set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: futures.Future[None] = futures.Future()
        self._thread = threading.Thread(target=self._run, name="remote engine", daemon=True)

    # Life

    def start(self) -> None:
        """Wait for the first server and begin to serve the base. Raises Problem where there is none."""
        self._thread.start()
        self._started.result()
        self.base = self._replicas.base

    def close(self) -> None:
        """Refuse new requests, interrupt the running ones, end the thread."""
        with self._lock:
            self._closing = True
        self._look()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def max_waiting(self) -> int:
        """Requests that may queue before Busy."""
        return self._scheduler.max_waiting

    @property
    def is_ready(self) -> bool:
        return self._thread.is_alive() and not self._closing and bool(self._replicas.up)

    # Requests

    def submit(
        self,
        messages: Messages,
        *,
        replies: int = 1,
        sampling: Sampling | None = None,
        seeds: Sequence[int] | None = None,
        version: str | None = None,
        person: str | None = None,
        kind: Kind = "chat",
        stop: Sequence[str] = (),
        deadline: float | None = None,
    ) -> Generation:
        """Queue `messages` for `replies` replies and return at once: see interface.py."""
        asked = Asked.of(
            self.base,
            messages,
            replies=replies,
            sampling=sampling,
            seeds=seeds,
            person=person,
            kind=kind,
            stop=stop,
            deadline=deadline,
        )
        with self._lock:
            if self._closing:
                raise Busy("The server is shutting down - try again in a moment.")
            if not self._replicas.up:
                raise Busy("No engine answers at the moment - try again in a moment.")
            name = version or self._serving
            self._check_known(name)
            generation = Generation(self.base.format, self.position_of, asked, name)
            self._scheduler.add(generation)
            self._users[name] += 1
        self._look()
        self.follow(generation)
        return generation

    def position_of(self, generation: Generation) -> int:
        """How many waiting requests come up to and with `generation`; 0 once it runs."""
        with self._lock:
            return self._scheduler.position_of(generation)

    @property
    def load_now(self) -> tuple[int, int]:
        """Requests running and waiting."""
        with self._lock:
            return len(self._scheduler.running), self._scheduler.waiting

    # Versions

    @property
    def version(self) -> str:
        """What answers a request that names no version."""
        return self._serving

    @property
    def known_versions(self) -> list[str]:
        with self._lock:
            return sorted(self._users)

    def load(self, name: str, adapter: Path | None) -> None:
        """Load version `name` on every server, from a verified directory that they see under this path."""
        with self._lock:
            self._retired.discard(name)  # wanted again: it stays until served or unloaded
            if name in self._users:
                return
        assert adapter is not None, "the base is always there"
        self._do(lambda: self._replicas.load(name, adapter))
        with self._lock:
            self._users.setdefault(name, 0)

    def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """Of ids[reply_start:], in nats a token, as one of the servers computes it: they agree."""
        with self._lock:
            self._check_known(version)
        return self._do(lambda: self._replicas.mean_logprob(version, ids, reply_start))

    def serve(self, name: str) -> None:
        """New requests are answered by `name` from now on. Others are let go when their last request ends."""
        with self._lock:
            self._check_known(name)
            self._retired = (self._retired | {self._serving}) - {name, BASE_VERSION}
            self._serving = name
            self._forget_unused()

    def unload(self, name: str) -> None:
        """Let go of a loaded version that does not serve, as soon as no request uses it."""
        with self._lock:
            if name not in (self._serving, BASE_VERSION) and name in self._users:
                self._retired.add(name)
                self._forget_unused()

    def _check_known(self, name: str) -> None:
        if name not in self._users:
            raise NotFound(f"Version {name!r} is not loaded here - load it first.")

    def _forget_unused(self) -> None:
        for name in [name for name in self._retired if not self._users[name]]:
            del self._users[name]
            self._retired.remove(name)
            if self._loop and not self._closing:
                asyncio.run_coroutine_threadsafe(self._replicas.unload(name), self._loop)

    # Between the threads

    def _look(self) -> None:
        """Let the loop look at once."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if self._loop:
                self._loop.call_soon_threadsafe(self._wake.set)

    def _do(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it in the loop and wait for what it returns or raises."""
        if self._loop and not self._closing:
            future = asyncio.run_coroutine_threadsafe(begin(), self._loop)
            while self._thread.is_alive() and not futures.wait([future], timeout=0.5).done:
                pass
            if future.done() and not future.cancelled():
                return future.result()
        raise Busy("The server is shutting down - try again in a moment.")

    # The loop

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._live())

    async def _live(self) -> None:
        try:
            await self._replicas.start(self._patience)
        except Exception as error:
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            await self._serve_all()
        finally:
            await self._replicas.close()

    async def _serve_all(self) -> None:
        watches = [asyncio.create_task(self._replicas.watch(replica)) for replica in self._replicas.all]
        try:
            while not self._closing:
                self._wake.clear()
                self._round()
                pause = LOOK_SECONDS if self._scheduler.requests else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
        finally:
            self._interrupt_all()
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await self._writing.close()

    def _round(self) -> None:
        """Leave what is over, let in who is next."""
        self._writing.leave_what_is_over()
        with self._lock:
            for request in self._scheduler.requests:
                request.end_if_late()
            self._let_go()
            while self._replicas.up and (next_one := self._scheduler.next()):
                self._writing.begin(next_one)

    def _let_go(self) -> None:
        """Forget the requests that ended, and the versions that only they used."""
        for request in self._scheduler.let_go():
            self._users[request.version] -= 1
        self._forget_unused()

    def _interrupt_all(self) -> None:
        with self._lock:
            for request in self._scheduler.requests:
                request.stop("interrupted")
            self._let_go()
