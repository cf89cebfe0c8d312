"""One of several vLLM servers, as we see it: is it up, how much does it write, is it stuck."""

import asyncio
from dataclasses import dataclass, field

from chatbot.vllm import Gone, Server

SILENT_SECONDS = 120.0
"""A server with replies to write that writes nothing of any is stuck: long prompts do not take so long. One
that writes at others only, also such as came later, has forgotten those that it has not begun."""
PREEMPTED_SECONDS = 480.0
"""The same for a reply that it has begun: where its KV cache is full, vLLM preempts replies until others have
ended. Shorter than a chat's deadline, so that another server may still write the rest."""


@dataclass(eq=False)
class Replica:
    """One of the servers."""

    server: Server
    is_up: bool = False
    rows: int = 0
    """Replies being written there."""
    failed_at: set[object] = field(default_factory=set)
    """Requests, since it last wrote a reply to its end."""
    last_until: float = 0.0
    """When it is asked like the others again, on the clock of the event loop."""
    problem: str | None = None
    """Why it is not up, as a sentence."""
    heard_at: float = 0.0
    """When it last wrote something of a reply, or was given one with no other under way."""

    def begin_row(self) -> None:
        """One reply more is written there."""
        if self.rows == 0:
            self.heard()
        self.rows += 1

    def heard(self) -> None:
        self.heard_at = asyncio.get_running_loop().time()

    def has_forgotten(self, since: float, *, is_begun: bool) -> bool:
        """Whether a reply that it has let wait since then is not to be waited for: it wrote at others.

        is_begun: whether it wrote tokens of that reply.
        """
        limit = PREEMPTED_SECONDS if is_begun else SILENT_SECONDS
        return _seconds_since(since) > limit and self.heard_at > since

    async def check(self) -> None:
        """Returns where it is well, and writes at what it has to write. Raises Problem."""
        await self.server.check()
        silent = _seconds_since(self.heard_at)
        if self.rows > 0 and silent > SILENT_SECONDS:
            raise Gone(f"{self.server.url} says that it is well and has written nothing for {silent:.0f} s.")


def _seconds_since(moment: float) -> float:
    return asyncio.get_running_loop().time() - moment
