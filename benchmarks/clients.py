"""Programs that ask a running server over HTTP: light enough that two hundred of them fit beside it.

A request is written by hand and its answer read line by line, since a full client would take the time that
is to be measured. Of an answer only `data:` lines are read; what frames them is passed over.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 120.0
MODEL = "night-school"


@dataclass
class Heard:
    """What a client heard, and when, on the clock that all processes of a machine share."""

    asked_at: float
    status: int = 0
    """0 where there was no answer."""
    answered_at: float = 0.0
    texts_at: list[float] = field(default_factory=list)
    """When each piece of text came."""
    text: str = ""
    """All of it; of several replies, mixed."""
    ended_at: float = 0.0
    tokens: int = 0
    finish_reason: str | None = None
    model: str | None = None
    problem: str = ""
    """An error's sentence, or how the connection broke."""

    @property
    def is_whole(self) -> bool:
        """Answered to the end."""
        return self.status == 200 and self.finish_reason is not None and not self.problem

    @property
    def is_refused(self) -> bool:
        """Told to come back later."""
        return self.status in (429, 503)

    @property
    def first_text(self) -> float:
        """Seconds from asking to the first piece of text, or to the end of an answer without any."""
        return (self.texts_at[0] if self.texts_at else self.ended_at) - self.asked_at


@dataclass(frozen=True)
class Client:
    """Asks one server in the name of one person."""

    url: str
    key: str

    async def ask(
        self, text: str, *, leave_after: int | None = None, go: asyncio.Event | None = None, **settings: Any
    ) -> Heard:
        """A streamed reply to `text`. `settings` are fields of the request.

        With `leave_after`, vanish after so many pieces of text, without a word. With `go`, connect at once
        and ask when it is set.
        """
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **settings}
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return await self.post(body | streamed, leave_after=leave_after, go=go)

    async def post(
        self, body: Any, *, leave_after: int | None = None, go: asyncio.Event | None = None
    ) -> Heard:
        """Send any body to /v1/chat/completions and hear the answer out, or break off."""
        heard = Heard(time.monotonic())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._exchange(heard, body, leave_after, go)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            heard.problem = f"{type(error).__name__}: {error}"
        heard.ended_at = time.monotonic()
        return heard

    async def _exchange(
        self, heard: Heard, body: Any, leave_after: int | None, go: asyncio.Event | None
    ) -> None:
        site = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(site.hostname, site.port)
        try:
            if go:
                await go.wait()
                heard.asked_at = time.monotonic()
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            writer.write(self._head(site.netloc, len(content)) + content)
            heard.status = int((await reader.readuntil(b"\r\n")).split()[1])
            heard.answered_at = time.monotonic()
            async for line in reader:
                _hear(heard, line.strip())
                if leave_after is not None and len(heard.texts_at) >= leave_after:
                    break
        finally:
            writer.transport.abort()  # no goodbye: this is how a client vanishes

    def _head(self, host: str, length: int) -> bytes:
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def get(self, path: str) -> str:
        """A page's text, whatever its status."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def load_now(self) -> tuple[int, int]:
        """Requests running and waiting, as /metrics tells them."""
        lines = dict(line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if line[:1] != "#")
        running, waiting = (float(lines[f"nightschool_requests_{state}"]) for state in ("running", "waiting"))
        return int(running), int(waiting)


def _hear(heard: Heard, line: bytes) -> None:
    """One line of an answer: a frame of a stream, or the JSON of an error."""
    if line.startswith(b"data: {"):
        _read(heard, json.loads(line[6:]))
    elif line.startswith(b"{"):
        _read(heard, json.loads(line))


def _read(heard: Heard, said: dict[str, Any]) -> None:
    if "error" in said:
        error = said["error"]
        heard.problem = str(error["message"] if isinstance(error, dict) else error)
        return
    heard.model = said["model"]
    for choice in said["choices"]:
        if piece := choice.get("delta", {}).get("content"):
            heard.texts_at.append(time.monotonic())
            heard.text += piece
        heard.finish_reason = choice["finish_reason"] or heard.finish_reason
    if said.get("usage"):
        heard.tokens = said["usage"]["completion_tokens"]
