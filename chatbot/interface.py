"""What the rest of Night School sees of an engine, be it in this process (engine.py) or not (remote.py)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from chatbot.basemodel import Base
from chatbot.chatformat import Messages
from chatbot.generation import Generation, Kind
from data.records import Sampling


class AnyEngine(Protocol):
    """Serves replies of one base model in several versions. All methods are thread-safe."""

    follow: Callable[[Generation], None]
    """Hears of every request that was accepted."""
    base: Base
    four_bit: bool
    form: str
    """In what format its weights are: that of kernels.py, or `nf4`."""
    device: torch.device
    dtype: torch.dtype

    @property
    def max_waiting(self) -> int:
        """Requests that may queue before Busy."""

    def start(self) -> None:
        """Begin to serve the base."""

    def close(self) -> None:
        """Refuse new requests, interrupt the running ones."""

    @property
    def is_ready(self) -> bool: ...

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
        deadline: seconds from now after which unfinished replies end as they are.

        Raises Refused for a prompt that cannot fit or a count out of range, NotFound for a version that is
        not loaded, Busy where the queue is full.
        """

    def position_of(self, generation: Generation) -> int:
        """How many waiting requests come up to and with `generation`; 0 once it runs."""

    @property
    def load_now(self) -> tuple[int, int]:
        """Requests running and waiting."""

    @property
    def version(self) -> str:
        """What answers a request that names no version."""

    @property
    def known_versions(self) -> list[str]:
        """The versions that can be asked."""

    def load(self, name: str, adapter: Path | None) -> None:
        """Build version `name` beside the others, from a verified adapter directory; None is the base."""

    def serve(self, name: str) -> None:
        """New requests are answered by `name` from now on. Others are let go when their last request ends."""

    def unload(self, name: str) -> None:
        """Let go of a loaded version that does not serve, as soon as no request uses it."""

    def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """Of ids[reply_start:], in nats a token: to compare what a version computes with its manifest."""
