"""The engine elsewhere: the same requests, versions and streams over one or several vLLM servers.

What runs next is decided here, as in engine.py and by the same scheduler: vLLM knows nothing of people. What
was let in goes to the server that writes the fewest replies (writing.py). A version is loaded on every server
and confirmed by what it computes before `serve` moves the pointer (replicas.py).

One thread with an event loop; the public methods are called from any other.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import torch

from chatbot.basemodel import Base
from chatbot.interface import AnyEngine
from chatbot.replicas import Replicas
from chatbot.writing import Writing
from data.errors import Unavailable
from data.records import BASE_VERSION

T = TypeVar("T")

LOOK_SECONDS = 0.02
"""Between two looks at what was stopped, timed out or lost its server."""
GOODBYE_SECONDS = 2.0
"""How long the end waits for servers that are letting versions go."""
PATIENCE_SECONDS = 300.0
"""How long the start waits for a server: one of vLLM's own takes minutes to load and compile a model."""


class RemoteEngine(AnyEngine):
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
        prefix: str = "v",
    ) -> None:
        """Asks the servers of `base` at `urls`, which see the directory `shared` under the same path.

        four_bit, dtype: in what format they compute, which says how exact they must be.
        rows_per_server: so many replies a server writes at a time (its --max-num-seqs). What is more would
            queue there, where a person's chat waits behind rollouts.
        patience: seconds that `start` waits for the first server.
        prefix: what the names of all versions begin with that this engine is to load; of those that servers
            hold, it unloads what it does not want. No two processes of one home may have the same.
        """
        super().__init__(
            base,
            form="nf4" if four_bit else str(dtype).removeprefix("torch."),
            dtype=dtype,
            device=torch.device("cpu"),  # no tensor of ours is anywhere else
            four_bit=four_bit,
            max_waiting=max_waiting,
            max_rows=rows_per_server * len(urls),
        )
        self._users[BASE_VERSION] = 0  # what the servers start with
        self._rows_per_server = rows_per_server
        self._replicas = Replicas(urls, base, shared, dtype=dtype, four_bit=four_bit, prefix=prefix)
        self._patience = patience
        self._awake = asyncio.Event()
        self._writing = Writing(self._replicas, base.format.end_of_turn, self._awake.set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: futures.Future[None] = futures.Future()
        self._leaving: set[futures.Future[None]] = set()  # versions that the servers are just letting go

    def start(self) -> None:
        """Wait for the first server that holds the base, and begin to serve it. Raises Problem where there is
        none."""
        self._replicas.read_base()  # in this thread: what computes in one leaves threads of its own behind
        self._thread.start()
        self._started.result()
        self.base = self._replicas.base

    @property
    def longest_reply(self) -> int:
        return 256  # as on a GPU here: that is what vLLM runs on

    @property
    def is_ready(self) -> bool:
        return super().is_ready and bool(self._replicas.up)

    def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """Mean log-probability of ids[reply_start:], in nats, as one of the servers has it: they agree."""
        with self._lock:
            self._check_known(version)
        return self._do(lambda: self._replicas.mean_logprob(version, ids, reply_start))

    def _build(self, name: str, adapter: Path | None) -> None:
        """Load it on every server, from a directory that they see under the same path."""
        assert adapter is not None, "the base is always there"
        self._do(lambda: self._replicas.load(name, adapter))

    def _drop(self, name: str) -> None:
        if self._loop and not self._closing:
            leaving = asyncio.run_coroutine_threadsafe(self._replicas.unload(name), self._loop)
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    def _check_open(self) -> None:
        super()._check_open()
        if not self._replicas.up:
            raise Unavailable("No engine answers at the moment - try again in a moment.")

    # Between the threads

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if self._loop:
                self._loop.call_soon_threadsafe(self._awake.set)

    def _do(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it in the loop and wait for what it returns or raises."""
        if self._loop and not self._closing:
            future = asyncio.run_coroutine_threadsafe(begin(), self._loop)
            while self._thread.is_alive() and not futures.wait([future], timeout=0.5).done:
                pass
            if future.done() and not future.cancelled():
                return future.result()
        raise Unavailable("The server is shutting down - try again in a moment.")

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
                self._awake.clear()
                self._round()
                pause = LOOK_SECONDS if self._scheduler.requests else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), pause)
        finally:
            with self._lock:
                self._end_all("interrupted" if self._closing else "failed")
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await self._writing.close()
            if leaving := [asyncio.wrap_future(future) for future in list(self._leaving)]:
                await asyncio.wait(leaving, timeout=GOODBYE_SECONDS)

    def _round(self) -> None:
        """Leave what is over, let in who is next."""
        self._writing.leave_what_is_over()
        with self._lock:
            self._let_go()
            self._scheduler.max_rows = self._rows_per_server * len(self._replicas.up)
            if self._replicas.up:
                for request in self._scheduler.let_in():
                    self._writing.begin(request)
