"""The replies under way at the servers, one task each, and what becomes of one whose server goes away.

All replies to a prompt go to one server, so that they share its prefill; each is a request of its own there,
with its own seed, and can be ended by itself. A reply whose server is taken out is continued by another
server from its last token: the same version writes the rest, though no longer the tokens that the seed alone
would have given. Where no other is up, it waits a while for one. Where a healthy server refuses a reply,
fails at it or forgets it, that one alone is tried again; a server that fails at request after request is
taken out, one that forgets is not: it writes the others.

Runs in the event loop of remote.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chatbot.generation import Generation
from chatbot.replica import Replica
from chatbot.replicas import Replicas
from chatbot.sampling import Row
from chatbot.vllm import Gone
from data.errors import Refused

log = logging.getLogger(__name__)

_TRIES = 3
"""Servers that a reply may lose. After so many the fault may be its own."""
PATIENCE_SECONDS = 10.0
"""How long a reply that has lost its server waits where no other is up."""
_LOOK_SECONDS = 0.02
"""Between two looks whether one is."""


class _Forgotten(Exception):
    """A server goes on with other replies and not with this one: lost there, or in a dead connection."""


@dataclass(eq=False)
class _OpenStream:
    """A reply that is being read from a server, and the timeout that ends the wait for its next token.

    Before its first token a reply may wait for long: servers have queues. That time is counted only from
    when one that was begun later is written.
    """

    row: Row
    replica: Replica
    limit: asyncio.Timeout
    begun_at: float
    """This and the others on the clock of the event loop."""
    heard_at: float | None = None
    """When its last token came."""
    overtaken_at: float | None = None
    """When one that was begun later got its first token before it."""
    is_forgotten: bool = False

    def leave_if_over(self) -> None:
        """Wait no more where the reply has ended, its server is out or has forgotten it."""
        is_begun = self.heard_at is not None
        since = self.heard_at if is_begun else self.overtaken_at
        self.is_forgotten |= since is not None and self.replica.has_forgotten(since, is_begun=is_begun)
        is_over = self.row.finish_reason is not None or not self.replica.is_up or self.is_forgotten
        if is_over and not self.limit.expired():
            self.limit.reschedule(0)


class Writing:
    """Every reply that servers write at the moment. Belongs to one event loop."""

    def __init__(self, replicas: Replicas, end_of_turn: int, ended: Callable[[], object]) -> None:
        """`ended` is called whenever a reply has ended."""
        self._replicas = replicas
        self._end_of_turn = end_of_turn
        self._ended = ended
        self._streams: set[_OpenStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, request: Generation) -> None:
        """Let a server that is up write all replies of `request`."""
        replica = self._replicas.pick()
        assert replica is not None, "nothing is let in while no server is up"
        for row in request.rows:
            replica.begin_row()  # at once: the next request is to see it
            task = asyncio.create_task(self._write(request, row, replica))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def leave_what_is_over(self) -> None:
        """End the reading of replies that were stopped, that were forgotten, and whose server is out."""
        for stream in self._streams:
            stream.leave_if_over()

    async def close(self) -> None:
        """End all reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, request: Generation, row: Row, replica: Replica) -> None:
        """One reply, on one server after the other until it has ended. At the first it is counted already."""
        failed_at: list[Replica] = []
        forgotten_by: list[Replica] = []
        for number in range(_TRIES):
            if number > 0:
                if (other := await self._another(row, failed_at, forgotten_by)) is None:
                    break
                replica = other
                replica.begin_row()
            try:
                await self._read(request, row, replica)
                replica.failed_at.clear()
                break
            except Gone as error:
                self._replicas.take_out(replica, error)
            except _Forgotten as error:
                log.error("A reply failed: %s", error)
                forgotten_by.append(replica)
            except Exception as error:  # what one request brings about must not end the others
                log.error("A reply failed: %s", error, exc_info=None if isinstance(error, Refused) else error)
                failed_at.append(replica)
                self._replicas.note_failure(replica, request, error)
            finally:
                replica.rows -= 1
        request.finish(row, "failed")  # where it has not ended otherwise
        self._ended()

    async def _another(
        self, row: Row, failed_at: Sequence[Replica], forgotten_by: Sequence[Replica]
    ) -> Replica | None:
        """A server that has not failed at this reply; where none at all is up, one may still come back. One
        that has forgotten it may well write it anew, but others come first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not self._replicas.up and row.finish_reason is None:
                    await asyncio.sleep(_LOOK_SECONDS)
        pick = self._replicas.pick
        return pick(but=[*failed_at, *forgotten_by]) or pick(but=failed_at)

    async def _read(self, request: Generation, row: Row, replica: Replica) -> None:
        """Fill the row from one server until it has ended. Raises Gone where the server breaks off."""
        if row.finish_reason is not None:  # stopped before it was begun
            return
        written, sampling = len(row.token_ids), request.sampling
        deltas = replica.server.write(
            self._replicas.tag_of(request.version),
            request.prompt + row.token_ids,
            replace(sampling, max_new_tokens=sampling.max_new_tokens - written),
            row.seed + written,
            self._end_of_turn,
        )
        # The timeout runs into TimeoutError only where `leave_if_over` lets it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit, contextlib.aclosing(deltas):
                stream = _OpenStream(row, replica, limit, asyncio.get_running_loop().time())
                self._streams.add(stream)
                try:
                    async for delta in deltas:
                        self._note_heard(stream)
                        if row.finish_reason is not None:  # stopped from outside during this step
                            return
                        left = sampling.max_new_tokens - len(row.token_ids)
                        row.logprobs += delta.logprobs[:left]
                        row.token_ids += delta.token_ids[:left]
                        request.notice()  # first: a stop text may be complete with the last token allowed
                        if delta.finish_reason is not None:
                            request.finish(row, delta.finish_reason)
                        elif len(delta.token_ids) > left:  # a server that would write for ever
                            request.finish(row, "length")
                finally:
                    self._streams.discard(stream)
        if row.finish_reason is None and stream.is_forgotten:
            raise _Forgotten(f"{replica.server.url} goes on with other replies and has forgotten one.")
        if row.finish_reason is None:
            raise Gone(f"{replica.server.url} broke a reply off.")

    def _note_heard(self, stream: _OpenStream) -> None:
        """A token came: with the first one it overtakes what was begun before it and still waits."""
        stream.replica.heard()
        now = stream.replica.heard_at
        for other in self._streams if stream.heard_at is None else ():
            is_before = other.replica is stream.replica and other.begun_at < stream.begun_at
            if is_before and other.heard_at is None and other.overtaken_at is None:
                other.overtaken_at = now
        stream.heard_at = now
