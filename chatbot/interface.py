"""The half of every engine that decides, be its weights in this process (engine.py) or elsewhere (remote.py).

Kept here: which versions there are, which of them serves, how many requests use each, and who waits. An
engine adds the other half: how a version comes to be answered from and how replies are written, in one thread
of its own.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from chatbot.basemodel import Base
from chatbot.bell import Bell
from chatbot.chatformat import Messages
from chatbot.generation import Asked, Generation, Kind
from chatbot.models import usual_reply
from chatbot.scheduler import Scheduler
from data.errors import NotFound, Unavailable
from data.records import BASE_VERSION, FinishReason, Sampling

log = logging.getLogger(__name__)


class AnyEngine(ABC):
    """Serves replies of one base model in several versions. All public methods are thread-safe.

    A request keeps the version it was admitted with; a version that was superseded or unloaded is let go when
    its last request ends.
    """

    def __init__(
        self,
        base: Base,
        *,
        form: str,
        dtype: torch.dtype,
        device: torch.device,
        four_bit: bool,
        max_waiting: int,
        max_rows: int,
    ) -> None:
        """`max_waiting` requests may queue before Busy; at most `max_rows` replies are written at a time."""
        self.base = base
        self.form = form
        """In what format its weights are: that of kernels.py, or `nf4`."""
        self.dtype = dtype
        self.device = device
        self.four_bit = four_bit
        self.ended: Callable[[Generation], None] = lambda generation: None
        """Hears of every request that has ended, in the engine's thread."""
        self.bell = Bell()
        """Rings whenever something was written or has ended."""
        self._lock = threading.Condition()
        self._scheduler = Scheduler(max_waiting, max_rows)
        self._users: dict[str, int] = {}  # version -> requests admitted and not yet ended
        self._serving = BASE_VERSION
        self._retired: set[str] = set()  # superseded or unloaded: let go when unused
        self._closing = False
        self.is_broken = False
        """Whether its thread ended unasked: only a new process can answer then."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # What an engine adds

    @abstractmethod
    def start(self) -> None:
        """Begin to serve the base."""

    @abstractmethod
    def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """Mean log-probability of ids[reply_start:], in nats: to compare a version with its manifest."""

    @abstractmethod
    def _build(self, name: str, adapter: Path | None) -> None:
        """Make version `name` one that can be answered from; raises where that fails. Twice is harmless."""

    @abstractmethod
    def _drop(self, name: str) -> None:
        """Undo `_build`. Called with the lock held."""

    @abstractmethod
    def _run(self) -> None:
        """Write replies until `_closing`, in the engine's thread. What it raises breaks the engine."""

    @abstractmethod
    def _wake(self) -> None:
        """Let the thread look at once whether there is something to do."""

    # Life

    def _work(self) -> None:
        """The thread. Where it breaks, all replies have failed and nobody waits for another."""
        try:
            self._run()
        except Exception:
            log.exception("The engine broke.")
            with self._lock:
                self.is_broken = self._closing = True
                self._end_all("failed")

    def close(self) -> None:
        """Refuse new requests, interrupt the running ones, end the thread."""
        with self._lock:
            self._closing = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def longest_reply(self) -> int:
        """Tokens of a reply where nobody says how many it may have."""
        return usual_reply(self.device)

    @property
    def is_ready(self) -> bool:
        return self._thread.is_alive() and not self._closing

    # Requests

    @property
    def max_waiting(self) -> int:
        """Requests that may queue before Busy."""
        return self._scheduler.max_waiting

    @property
    def room(self) -> int:
        """How many requests of one reply each would be taken at this moment, at most."""
        with self._lock:
            return self._scheduler.room

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
        """Queue `messages` for `replies` replies and return at once.

        version: None is what serves at this moment.
        seeds: one a reply; drawn where not given.
        person: whose request it is; people take turns.
        kind: what it is for; chat comes first.
        stop: texts that end a reply, which then ends before them.
        deadline: seconds after which unfinished replies end as they are: for kind `api` from now to the end,
        for others from now, or the latest token, to the next; None is for ever.

        Raises Refused for a prompt that cannot fit, a count out of range or more memory than is for programs,
        NotFound for a version that is not loaded, Busy where the queue is full.
        """
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
        return self.accept(asked, version)

    def accept(self, asked: Asked, version: str | None = None) -> Generation:
        """Queue what was checked before. Raises NotFound, Busy, and Refused for too much
        memory, as `submit` does."""
        with self._lock:
            self._check_open()
            name = version or self._serving
            self._check_known(name)
            generation = Generation(self.base.format, self.position_of, asked, name, self.bell.ring)
            self._scheduler.add(generation)
            self._users[name] += 1
        self._wake()
        return generation

    def position_of(self, generation: Generation) -> int:
        """The place of `generation` among the waiting requests, from 1; 0 once it runs."""
        with self._lock:
            return self._scheduler.position_of(generation)

    def longest_that_fits(self, prompt: int, replies: int, most: int) -> int:
        """Tokens that each of a program's replies may have, `most` at most, so that others run beside it."""
        return self._scheduler.longest_that_fits(prompt, replies, most)

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
        """The versions that can be asked."""
        with self._lock:
            return sorted(self._users)

    def load(self, name: str, adapter: Path | None) -> None:
        """Build version `name` beside the others, from a verified adapter directory; None is the base.

        Runs in the caller's thread; streams go on meanwhile. Loading twice is harmless.
        """
        with self._lock:
            self._retired.discard(name)  # wanted again: it stays until superseded or unloaded
            if name in self._users:
                return
        self._build(name, adapter)
        with self._lock:
            self._users.setdefault(name, 0)

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

    # For the engines, with the lock held

    def _check_open(self) -> None:
        """Raises Unavailable where no request can be taken."""
        if self._closing:
            raise Unavailable("The server is shutting down - try again in a moment.")

    def _check_known(self, name: str) -> None:
        if name not in self._users:
            raise NotFound(f"Version {name!r} is not loaded here - load it first.")

    def _let_go(self) -> None:
        """Forget the requests that ended or are late, and the versions that only they used."""
        for request in self._scheduler.requests:
            request.end_if_late()
        for request in self._scheduler.let_go():
            self._users[request.version] -= 1
            self.ended(request)
        self._forget_unused()

    def _end_all(self, reason: FinishReason) -> None:
        for request in self._scheduler.requests:
            request.stop(reason)
        self._let_go()

    def _forget_unused(self) -> None:
        for name in [name for name in self._retired if not self._users[name]]:
            del self._users[name]
            self._retired.remove(name)
            self._drop(name)
