"""Replies on their way to a program: the engine's tokens as OpenAI's objects, whole or as chunks of a stream.

A stream says nothing it may have to take back: text that could be the beginning of a stop text waits until
the next tokens decide, and half a character until the rest of it is there. So the pieces of a reply joined
are its text, and the tokens of its log-probabilities joined are too.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatbot.generation import Generation, ReplyStream
from data.records import FinishReason

FINISHED: dict[FinishReason, str] = {"stop": "stop", "length": "length", "cancelled": "length"}
"""What ends a reply well, in OpenAI's words; one that its deadline ended was cut by a limit too."""
_WINDOW = 16
"""Tokens that are decoded again with each new one: more than the longest character has."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as a piece of the reply's text, from `begin` to `end`; empty where its character goes on."""

    text: str
    begin: int
    end: int
    logprob: float

    def as_json(self) -> dict[str, Any]:
        bytes_ = list(self.text.encode())
        return {"token": self.text, "bytes": bytes_, "logprob": self.logprob, "top_logprobs": []}


class ReplyReader:
    """One reply as it is read: `news` is what may be told since the last time."""

    def __init__(
        self, reply: ReplyStream, stop: Sequence[str], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._decode = decode
        self._reply = reply
        self._stop = stop
        self._read = 0  # tokens
        self._text_end = 0  # characters that these are
        self._pending = ""  # the last of them, not told yet
        self._tokens: deque[Token] = deque()  # not told yet
        self._window = 0  # the token from which on we decode
        self._before = ""  # and what came of it the last time
        self.finish_reason: FinishReason | None = None
        """Set when all has been told."""

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None

    def news(self) -> tuple[str, list[Token]]:
        """The text that may be told now, and its tokens. Both empty where there is nothing new."""
        finish = self._reply.finish_reason  # asked first: what has ended has all its tokens
        if self.has_ended or (finish is None and self._reply.tokens == self._read):
            return "", []
        ids, logprobs = self._reply.token_ids, self._reply.logprobs
        while self._read < len(ids):
            self._take(ids[self._window : self._read + 1], logprobs[self._read])
        told = self._text_end - len(self._pending)
        if finish is None:
            length = safe_length(self._pending, self._stop)
        else:
            length = max(0, len(self._reply.text) - told)
            self.finish_reason = finish
        text, self._pending = self._pending[:length], self._pending[length:]
        return text, self._release(told + length)

    def _take(self, window: list[int], logprob: float) -> None:
        """One more token, the last of the window: what it adds to the text."""
        now = self._decode(window)
        piece = now[len(self._before) :]
        self._before = now
        self._tokens.append(Token(piece, self._text_end, self._text_end + len(piece), logprob))
        self._read += 1
        self._text_end += len(piece)
        self._pending += piece
        # A window may begin within a character: what is left of that becomes a mark, and stays one as long as
        # text comes after it. So the window moves only to where there is text.
        if len(window) > 2 * _WINDOW and (shorter := self._decode(window[-_WINDOW:])):
            self._window, self._before = self._read - _WINDOW, shorter

    def _release(self, told: int) -> list[Token]:
        """The tokens of the text told so far; at the end also the one that a stop text cuts."""
        released = []
        while self._tokens and self._tokens[0].begin < told:
            if self._tokens[0].end > told and not self.has_ended:
                break
            released.append(self._tokens.popleft())
        return released


def safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of `text` stays whatever comes: up to a stop text, or to what may become one."""
    length = len(text)
    for stop in stops:
        begins = (
            at for at in range(max(0, len(text) - len(stop) + 1), len(text)) if stop.startswith(text[at:])
        )
        found = text.find(stop)
        length = min(length, found if found >= 0 else next(begins, length))
    return length


class Completion:
    """An answer: its id, its version and its replies, in OpenAI's shapes."""

    def __init__(self, generation: Generation, build: str) -> None:
        """`build` is what beside version and seed decides a reply, in a few letters."""
        self._generation = generation
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": generation.version,
            "system_fingerprint": f"{generation.version}-{build}",
        }

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, once, and of all replies, with those that end a turn."""
        prompt = len(self._generation.prompt)
        written = sum(reply.tokens for reply in self._generation.replies)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def whole(self, readings: Sequence[ReplyReader], *, has_logprobs: bool) -> dict[str, Any]:
        """The answer once every reply has ended well."""
        choices = []
        for index, (reading, reply) in enumerate(zip(readings, self._generation.replies, strict=True)):
            assert reply.finish_reason in FINISHED, "failures are told otherwise"
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": reply.text, "refusal": None},
                    "logprobs": _logprobs(reading.news()[1]) if has_logprobs else None,
                    "finish_reason": FINISHED[reply.finish_reason],
                }
            )
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        tokens: Sequence[Token] | None = None,
        finish: FinishReason | None = None,
    ) -> dict[str, Any]:
        """A piece of one reply; `tokens` where their log-probabilities are asked for."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None if tokens is None else _logprobs(tokens),
            "finish_reason": finish and FINISHED[finish],
        }
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], "usage": None}

    def last_chunk(self) -> dict[str, Any]:
        """What a stream cost, for those who ask."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage}


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    return {"content": [token.as_json() for token in tokens], "refusal": None}
