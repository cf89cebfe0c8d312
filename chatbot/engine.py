"""The engine in this process: requests come in from any thread, one thread decodes, replies stream out.

A round of its loop is: decide who is let in (scheduler.py), do one step of each version's rows (runner.py),
record what came of it (generation.py). Requests join and leave at any step.

Versions: each has weights and a runner of its own. They are built in the caller's thread beside those that
serve; `serve` moves a pointer. A request keeps the version it was admitted with; a version nobody uses is
let go.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chatbot.basemodel import Base
from chatbot.chatformat import Messages
from chatbot.generation import Asked, Generation, Kind
from chatbot.kernels import Format
from chatbot.llama import Llama
from chatbot.models import merged_model, on_one_thread, pick_device, pick_dtype
from chatbot.padded import AnyModel
from chatbot.prefixes import Prefixes
from chatbot.runner import Runner, prepare, runner_for
from chatbot.scheduler import Scheduler
from data.errors import Busy, NotFound, Refused
from data.records import BASE_VERSION, Sampling

log = logging.getLogger(__name__)

_KEPT_BYTES = 256 * 2**20
"""Of keys and values that each version remembers for the next turns of conversations."""


@dataclass
class _Loaded:
    """A version in memory. `users` counts requests admitted and not yet ended."""

    weights: Llama | AnyModel
    runner: Runner
    users: int = 0


class Engine:
    """Serves replies of one base model in several versions. All public methods are thread-safe."""

    def __init__(
        self,
        base: Base,
        *,
        precision: str = "auto",
        four_bit: bool = False,
        max_waiting: int = 32,
        max_rows: int = 64,
    ) -> None:
        """`precision` is a format of kernels.py, or `auto`: bfloat16 where the hardware has it.

        `max_waiting` requests may queue before Busy; at most `max_rows` replies are decoded at a time.
        """
        self.base = base
        self.four_bit = four_bit
        self.device = pick_device()
        if precision == "int8" and self.device.type != "cpu":
            raise Refused("int8 is a format of CPUs - use bfloat16 on this device.")
        self.dtype = pick_dtype("bfloat16" if precision == "int8" else precision, self.device)
        self._format: Format = "int8" if precision == "int8" else _FORMATS[self.dtype]
        self.form: str = "nf4" if four_bit else self._format
        self.follow: Callable[[Generation], None] = lambda generation: None
        """Hears of every request that was accepted."""
        self.threads = torch.get_num_threads()
        """CPU threads of a step, from the next one on."""
        self._lock = threading.Condition()
        self._scheduler = Scheduler(max_waiting, max_rows)
        self._versions: dict[str, _Loaded] = {}
        self._serving = BASE_VERSION
        self._retired: set[str] = set()  # once served, now superseded: let go when unused
        self._thread: threading.Thread | None = None
        self._closing = False

    # Life

    def start(self) -> None:
        """Load the base and begin to serve it."""
        self.load(BASE_VERSION, None)
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuse new requests, interrupt the running ones, end the thread."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread:
            self._thread.join()

    @property
    def max_waiting(self) -> int:
        """Requests that may queue before Busy."""
        return self._scheduler.max_waiting

    @property
    def is_ready(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self._closing

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
            name = version or self._serving
            if name not in self._versions:
                raise NotFound(f"Version {name!r} is not loaded here - load it first.")
            generation = Generation(self.base.format, self.position_of, asked, name)
            self._scheduler.add(generation)
            self._versions[name].users += 1
            self._lock.notify_all()
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
            return sorted(self._versions)

    def load(self, name: str, adapter: Path | None) -> None:
        """Build version `name` beside the others, from a verified adapter directory; None is the base.

        Runs in the caller's thread; streams go on meanwhile. Loading twice is harmless.
        """
        with self._lock:
            self._retired.discard(name)  # wanted again: it stays until served or unloaded
            if name in self._versions:
                return
        with on_one_thread():
            model = merged_model(
                self.base, adapter, device=self.device, dtype=self.dtype, four_bit=self.four_bit
            )
            weights = prepare(model, self._format)
        with self._lock:
            self._versions.setdefault(name, _Loaded(weights, self._runner(weights)))

    def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """Of ids[reply_start:], in nats a token: to compare what a version computes with its manifest."""
        with self._lock:
            if version not in self._versions:
                raise NotFound(f"Version {version!r} is not loaded here - load it first.")
            weights = self._versions[version].weights
        with on_one_thread():
            return float(weights.logprobs(ids, reply_start).mean())

    def serve(self, name: str) -> None:
        """New requests are answered by `name` from now on. Others are let go when their last request ends."""
        with self._lock:
            if name not in self._versions:
                raise NotFound(f"Version {name!r} is not loaded here - load it first.")
            self._retired = (self._retired | {self._serving}) - {name, BASE_VERSION}
            self._serving = name
            self._forget_unused()

    def unload(self, name: str) -> None:
        """Let go of a loaded version that does not serve, as soon as no request uses it."""
        with self._lock:
            if name not in (self._serving, BASE_VERSION) and name in self._versions:
                self._retired.add(name)
                self._forget_unused()

    def _forget_unused(self) -> None:
        for name in [name for name in self._retired if not self._versions[name].users]:
            del self._versions[name]
            self._retired.remove(name)

    # The loop: decide, do, record

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._scheduler.requests or self._busy())
                if self._closing:
                    break
                self._let_go()
                while (request := self._scheduler.next()) is not None:
                    self._versions[request.version].runner.add(request)
                busy = self._busy()
            if self.threads != torch.get_num_threads():
                torch.set_num_threads(self.threads)
            for loaded in busy:
                self._step(loaded)
        self._interrupt_all()

    def _busy(self) -> list[_Loaded]:
        """The versions that have rows."""
        return [loaded for loaded in self._versions.values() if not loaded.runner.is_idle]

    def _step(self, loaded: _Loaded) -> None:
        """One token for each of a version's rows."""
        theirs = [r for r in self._scheduler.running if self._versions.get(r.version) is loaded]
        try:
            loaded.runner.step()
        except Exception:
            # A broken step must not take the server down: its replies end as failed, the rest goes on.
            log.exception("A step of %d replies failed.", loaded.runner.width)
            loaded.runner = self._runner(loaded.weights)
            for request in theirs:
                request.stop("failed")
        for request in theirs:
            request.notice()

    def _runner(self, weights: Llama | AnyModel) -> Runner:
        return runner_for(weights, self.base.format.end_of_turn, keep=Prefixes(_KEPT_BYTES))

    def _let_go(self) -> None:
        """Forget the requests that ended, and the versions that only they used."""
        for request in self._scheduler.requests:
            request.end_if_late()
        for request in self._scheduler.let_go():
            self._versions[request.version].users -= 1
        self._forget_unused()

    def _interrupt_all(self) -> None:
        with self._lock:
            for request in self._scheduler.requests:
                request.stop("interrupted")
            self._let_go()


_FORMATS: dict[torch.dtype, Format] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
