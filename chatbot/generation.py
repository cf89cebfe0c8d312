"""A request on its way: a prompt, the version that answers it, and K replies that can be read as they grow.

Made by the engine, which fills the rows from its own thread; read and stopped from any other.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from chatbot.basemodel import Base
from chatbot.chatformat import ChatFormat, FittedPrompt, Messages
from chatbot.sampling import Row
from data.errors import Refused
from data.records import FinishReason, Sampling

MAX_REPLIES = 9
DEADLINE = 600.0
"""Seconds that somebody waits for the next token of a turn, however slow the machine (`Asked.deadline`)."""
API_DEADLINE = 570.0
"""The same for all of an API's answer: OpenAI's client gives up after 600 seconds, and asks again."""
LONG_DEADLINE = 3600.0
"""The same where nobody waits, as for simulated raters, who stand behind hundreds of others."""
_LEAST_ROOM_FOR_PROMPT = 64

Kind = Literal["chat", "api", "rollout"]
"""What a request is for, the most urgent first."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class ReplyStream:
    """One reply, readable while it is written."""

    def __init__(self, generation: "Generation", row: Row) -> None:
        self._generation = generation
        self._row = row
        self._noted = 0  # tokens
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        """On the monotonic clock, like that of the first; None where none came yet."""

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

    def note_tokens(self, now: float) -> None:
        """Take down that tokens came, if any did since the last time."""
        if (tokens := self.tokens) > self._noted:
            self._noted, self.last_token_at = tokens, now
            self.first_token_at = self.first_token_at or now

    def stop(self) -> None:
        """End this reply where it stands. Stopping twice is harmless."""
        self._generation.finish(self._row, "cancelled")


@dataclass(frozen=True)
class Asked:
    """A request that can be answered, whoever does it."""

    prompt: FittedPrompt
    sampling: Sampling
    seeds: Sequence[int]
    """One a reply."""
    person: str | None = None
    kind: Kind = "chat"
    stop: Sequence[str] = ()
    deadline: float | None = None
    """Seconds after which unfinished replies end as they are: for kind `api` from its arrival to its end, for
    others from its arrival, or its latest token, to the next; None is for ever."""

    @staticmethod
    def of(
        base: Base,
        messages: Messages,
        *,
        replies: int,
        sampling: Sampling | None = None,
        seeds: Sequence[int] | None = None,
        person: str | None = None,
        kind: Kind = "chat",
        stop: Sequence[str] = (),
        deadline: float | None = None,
    ) -> "Asked":
        """Checked and fitted to the context of `base`; what is left open is chosen. Raises Refused."""
        sampling = sampling or Sampling()
        if not 1 <= replies <= MAX_REPLIES:
            raise Refused(f"{replies!r} replies were asked for - use 1 to {MAX_REPLIES}.")
        seeds = list(seeds) if seeds is not None else [random.getrandbits(31) for _ in range(replies)]
        assert len(seeds) == replies, "one seed a reply"
        room = room_for_prompt(base, sampling.max_new_tokens)
        return Asked(base.format.fit(messages, room), sampling, seeds, person, kind, stop, deadline)


def room_for_prompt(base: Base, max_new_tokens: int) -> int:
    """Tokens that a reply of this length leaves to its prompt. Raises Refused where that is too few."""
    room = base.context - max_new_tokens
    if room < _LEAST_ROOM_FOR_PROMPT:
        raise Refused(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in a context of "
            f"{base.context} tokens - use fewer."
        )
    return room


class Generation:
    """One request: a prompt, the version that answers it, and its K replies."""

    def __init__(
        self,
        chat: ChatFormat,
        position_of: Callable[["Generation"], int],
        asked: Asked,
        version: str,
        ring: Callable[[], object] = lambda: None,
    ) -> None:
        """`ring` is called after every change that a reader may want to see."""
        self._chat = chat
        self._position_of = position_of
        self._ring = ring
        self._changed = threading.Condition()
        self.prompt = asked.prompt.ids
        self.dropped = asked.prompt.dropped
        """How many of the oldest messages were left out to fit the context."""
        self.version = version
        self.sampling = asked.sampling
        self.person = asked.person
        self.kind: Kind = asked.kind
        self._stop_texts = asked.stop
        # A token is a byte at least; a few more, since the first ones of a window may lose a space.
        self._longest_stop = max((len(stop.encode()) for stop in self._stop_texts), default=0) + 8
        self.submitted_at = time.monotonic()
        self._deadline = asked.deadline
        self.rows = [
            Row(seed, look_for_stop=partial(self._look_for_stop, number))
            for number, seed in enumerate(asked.seeds)
        ]
        self._looked_at = [0] * len(self.rows)  # tokens of each row that were searched for stop texts
        self.replies = tuple(ReplyStream(self, row) for row in self.rows)

    @property
    def priority(self) -> int:
        """That of its kind; 0, that of a chat, is the most urgent."""
        return KINDS.index(self.kind)

    @property
    def is_done(self) -> bool:
        return all(row.finish_reason for row in self.rows)

    @property
    def queue_position(self) -> int:
        """Its place among the waiting requests, from 1; 0 once it runs."""
        return self._position_of(self)

    @property
    def width(self) -> int:
        """Replies that have not ended."""
        return sum(row.finish_reason is None for row in self.rows)

    def text_of(self, row: Row) -> str:
        """The text of a row up to the first stop text."""
        text = self._chat.decode(list(row.token_ids))
        found = [at for stop in self._stop_texts if (at := text.find(stop)) >= 0]
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
        self._ring()

    def end_if_late(self) -> None:
        """End what is not finished at `Asked.deadline`: to an API's caller it was cut by a limit, as by its
        `max_tokens`; a person reads that it was interrupted, for they stopped nothing."""
        if self._deadline is None:
            return
        since, is_api = self.submitted_at, self.kind == "api"
        if not is_api:
            since = max(since, *(reply.last_token_at or since for reply in self.replies))
        if time.monotonic() > since + self._deadline:
            self.stop("cancelled" if is_api else "interrupted")

    def notice(self) -> None:
        """After a step: note when tokens came, end what met a stop text, wake who waits."""
        now = time.monotonic()
        for reply in self.replies:
            reply.note_tokens(now)
        for number, row in enumerate(self.rows if self._stop_texts else ()):
            if row.finish_reason is None and self._look_for_stop(number):
                self.finish(row, "stop")
        if self.is_done:
            with self._changed:
                self._changed.notify_all()
        self._ring()

    def _look_for_stop(self, number: int) -> bool:
        """Whether a stop text ends in the tokens that this row got since the last look, which is now this."""
        if not self._stop_texts:
            return False
        tokens = self.rows[number].token_ids
        seen, self._looked_at[number] = self._looked_at[number], len(tokens)
        text = self._chat.decode(tokens[max(0, seen - self._longest_stop) :])
        return any(stop in text for stop in self._stop_texts)
