"""A request on its way: a prompt, the version that answers it, and K replies that can be read as they grow.

Made by the engine, which fills the rows from its own thread; read and stopped from any other.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from chatbot.chatformat import ChatFormat
from chatbot.sampling import Row
from data.records import FinishReason, Sampling

Kind = Literal["chat", "api", "review", "rollout"]
"""What a request is for, the most urgent first."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class ReplyStream:
    """One reply, readable while it is written."""

    def __init__(self, generation: "Generation", row: Row) -> None:
        self._generation = generation
        self._row = row
        self.first_token_at: float | None = None

    @property
    def seed(self) -> int:
        return self._row.seed

    @property
    def token_ids(self) -> list[int]:
        """A copy of the tokens so far; the last is the end-of-turn token where it finished by `stop`."""
        return list(self._row.token_ids)

    @property
    def tokens(self) -> int:
        return len(self._row.token_ids)

    @property
    def logprobs(self) -> list[float]:
        """Natural logarithm of each token's probability under the model itself, at temperature 1."""
        return list(self._row.logprobs)

    @property
    def text(self) -> str:
        """What is written so far; where a stop text came up, what stands before it."""
        return self._generation.text_of(self._row)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._row.finish_reason

    def stop(self) -> None:
        """End this reply where it stands. Stopping twice is harmless."""
        self._generation.finish(self._row, "cancelled")


class Generation:
    """One request: a prompt, the version that answers it, and its K replies."""

    def __init__(
        self,
        chat: ChatFormat,
        position_of: Callable[["Generation"], int],
        prompt: list[int],
        dropped: int,
        version: str,
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        person: str | None = None,
        kind: Kind = "chat",
        stop: Sequence[str] = (),
        deadline: float | None = None,
    ) -> None:
        self._chat = chat
        self._position_of = position_of
        self._changed = threading.Condition()
        self.prompt = prompt
        self.dropped = dropped
        """How many of the oldest messages were left out to fit the context."""
        self.version = version
        self.sampling = sampling
        self.person = person
        self.kind: Kind = kind
        self._stop = stop
        self.submitted_at = time.monotonic()
        self._deadline = None if deadline is None else self.submitted_at + deadline
        self.rows = [Row(seed) for seed in seeds]
        self.replies = tuple(ReplyStream(self, row) for row in self.rows)

    @property
    def is_done(self) -> bool:
        return all(row.finish_reason for row in self.rows)

    @property
    def queue_position(self) -> int:
        """How many requests are served before this one; 0 once it runs."""
        return self._position_of(self)

    @property
    def width(self) -> int:
        """Replies that have not ended."""
        return sum(row.finish_reason is None for row in self.rows)

    def text_of(self, row: Row) -> str:
        """The text of a row up to the first stop text."""
        text = self._chat.decode(list(row.token_ids))
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def wait(self, timeout: float | None = None) -> bool:
        """Until every reply has ended; False where `timeout` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_done, timeout)

    def stop(self, reason: FinishReason = "cancelled") -> None:
        """End all replies where they stand."""
        for row in self.rows:
            self.finish(row, reason)

    def finish(self, row: Row, reason: FinishReason) -> None:
        """Mark a row as ended, once."""
        with self._changed:
            if row.finish_reason is None:
                row.finish_reason = reason
            self._changed.notify_all()

    def end_if_late(self) -> None:
        """End what is not finished where the deadline has passed."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.stop()

    def notice(self) -> None:
        """After a step: note first tokens, end what met a stop text, wake who waits."""
        now = time.monotonic()
        for reply in self.replies:
            if reply.first_token_at is None and reply.tokens:
                reply.first_token_at = now
        for row in self.rows if self._stop else ():
            text = self._chat.decode(list(row.token_ids))
            if row.finish_reason is None and any(stop in text for stop in self._stop):
                self.finish(row, "stop")
        if self.is_done:
            with self._changed:
                self._changed.notify_all()
