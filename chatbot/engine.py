"""What runs next: requests come in from any thread, one thread decodes, replies stream out.

A round of the loop is: admit what waits, step every batch, let go of what ended. Requests that wait
together and want the same version are prefilled and decoded as one batch; those that come later form the
next batch, and batches take turns step by step, so nobody waits for a stranger's long reply.

Versions: each is a merged model of its own, built in the caller's thread beside the one that serves. `serve`
moves a pointer. A request keeps the version it was admitted with; a version nobody uses is let go.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.chatformat import Messages
from chatbot.decoding import Decoding
from chatbot.generation import Generation
from chatbot.models import merged_model, pick_device, pick_dtype
from data.errors import Busy, NotFound, Refused
from data.records import BASE_VERSION, Sampling

log = logging.getLogger(__name__)

MAX_REPLIES = 9
_LEAST_ROOM_FOR_PROMPT = 64
_GATHER_SECONDS = 0.002


@dataclass
class _Loaded:
    """A version in memory. `users` counts requests admitted and not yet ended."""

    model: PreTrainedModel
    users: int = 0


@dataclass
class _Running:
    """Requests decoded together."""

    decoding: Decoding
    generations: list[Generation] = field(default_factory=list)


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
        """`max_waiting` requests may queue before Busy; at most `max_rows` replies are decoded at a time."""
        self.base = base
        self.four_bit = four_bit
        self.device = pick_device()
        self.dtype = pick_dtype(precision, self.device)
        self.max_waiting = max_waiting
        self._max_rows = max_rows
        self._lock = threading.Condition()
        self._versions: dict[str, _Loaded] = {}
        self._serving = BASE_VERSION
        self._retired: set[str] = set()  # once served, now superseded: let go when unused
        self._waiting: deque[Generation] = deque()
        self._running: list[_Running] = []
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
    ) -> Generation:
        """Queue `messages` for `replies` replies and return at once.

        `version` None is what serves at this moment; `seeds`, one a reply, are drawn where not given.
        Raises Refused for a prompt that cannot fit or a count out of range, NotFound for a version not
        loaded, Busy where the queue is full.
        """
        sampling = sampling or Sampling()
        if not 1 <= replies <= MAX_REPLIES:
            raise Refused(f"{replies!r} replies were asked for - use 1 to {MAX_REPLIES}.")
        seeds = list(seeds) if seeds is not None else [random.getrandbits(31) for _ in range(replies)]
        assert len(seeds) == replies, "one seed a reply"
        room = self.base.context - sampling.max_new_tokens
        if room < _LEAST_ROOM_FOR_PROMPT:
            raise Refused(
                f"max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt in a context of "
                f"{self.base.context} tokens - use fewer."
            )
        fitted = self.base.format.fit(messages, room)
        with self._lock:
            if self._closing:
                raise Busy("The server is shutting down - try again in a moment.")
            if len(self._waiting) >= self.max_waiting:
                raise Busy(f"{len(self._waiting)} requests are waiting already - try again in a moment.")
            name = version or self._serving
            if name not in self._versions:
                raise NotFound(f"Version {name!r} is not loaded here - load it first.")
            self._versions[name].users += 1
            generation = Generation(
                self.base.format, self.position_of, fitted.ids, fitted.dropped, name, sampling, seeds
            )
            self._waiting.append(generation)
            self._lock.notify_all()
        return generation

    def position_of(self, generation: Generation) -> int:
        """How many waiting requests come up to and with `generation`; 0 once it runs."""
        with self._lock:
            return self._waiting.index(generation) + 1 if generation in self._waiting else 0

    @property
    def load_now(self) -> tuple[int, int]:
        """Requests running and waiting."""
        with self._lock:
            return sum(len(batch.generations) for batch in self._running), len(self._waiting)

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
        model = merged_model(self.base, adapter, device=self.device, dtype=self.dtype, four_bit=self.four_bit)
        with self._lock:
            self._versions.setdefault(name, _Loaded(model))

    def model_of(self, name: str) -> PreTrainedModel:
        """The merged model of a loaded version, to compare its log-probabilities with its manifest."""
        with self._lock:
            return self._versions[name].model

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

    # The loop: admit, step, let go

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._waiting or self._running)
                if not self._running:  # those who ask at the same moment share a prefill
                    self._lock.wait_for(lambda: self._closing, _GATHER_SECONDS)
                if self._closing:
                    break
                self._admit()
            for batch in list(self._running):
                self._step(batch)
                self._let_go(batch)
        self._interrupt_all()

    def _admit(self) -> None:
        """Start everything that waits and fits, one batch for each version."""
        free = self._max_rows - sum(batch.decoding.width for batch in self._running)
        chosen: dict[str, list[Generation]] = {}
        while self._waiting and (len(self._waiting[0].rows) <= free or not (self._running or chosen)):
            generation = self._waiting.popleft()
            if generation.is_done:  # stopped while it waited
                self._versions[generation.version].users -= 1
                continue
            free -= len(generation.rows)
            chosen.setdefault(generation.version, []).append(generation)
        self._forget_unused()
        for version, generations in chosen.items():
            decoding = Decoding(
                self._versions[version].model,
                [g.prompt for g in generations],
                [g.rows for g in generations],
                [g.sampling for g in generations],
                self.base.format.end_of_turn,
            )
            self._running.append(_Running(decoding, generations))

    def _step(self, batch: _Running) -> None:
        try:
            batch.decoding.step()
        except Exception:
            # One broken batch must not take the server down: its replies end as failed, the rest goes on.
            log.exception("A batch of %d replies failed.", batch.decoding.width)
            for generation in batch.generations:
                generation.stop("failed")
        for generation in batch.generations:
            generation.notice()

    def _let_go(self, batch: _Running) -> None:
        ended = [g for g in batch.generations if g.is_done]
        if not ended:
            return
        with self._lock:
            for generation in ended:
                batch.generations.remove(generation)
                self._versions[generation.version].users -= 1
            if not batch.generations:
                self._running.remove(batch)
            self._forget_unused()

    def _interrupt_all(self) -> None:
        with self._lock:
            left = [g for batch in self._running for g in batch.generations] + list(self._waiting)
            self._running.clear()
            self._waiting.clear()
        for generation in left:
            generation.stop("interrupted")


def set_threads(threads: int) -> None:
    """How many cores one forward pass may use; 0 leaves torch's choice."""
    if threads:
        torch.set_num_threads(threads)
