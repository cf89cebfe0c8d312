"""Tells coroutines that something was written, the moment it was: the engine's thread rings, they hear it.

To look again every few milliseconds would wake each of two hundred streams fifty times a second, and the
engine, which shares one interpreter with them, would wait for all of that.
"""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable


class Bell:
    """Rung from any thread, heard in any event loop."""

    def __init__(self) -> None:
        self._awaited: dict[AbstractEventLoop, Future[None]] = {}

    def next_ring(self) -> "Future[None]":
        """Done at the next ring. Others wait for the same one, so it must not be cancelled: `asyncio.wait`.

        To miss nothing, ask for it first and look at what was written then.
        """
        loop = asyncio.get_running_loop()
        return self._awaited.get(loop) or self._awaited.setdefault(loop, loop.create_future())

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so()`, which is asked now and after every ring."""
        while True:
            ring = self.next_ring()
            if is_so():
                return
            await asyncio.wait([ring])

    def ring(self) -> None:
        """Whoever waits may look. Costs next to nothing where nobody does."""
        for loop in list(self._awaited):
            if future := self._awaited.pop(loop, None):
                try:
                    loop.call_soon_threadsafe(_wake, future)
                except RuntimeError:  # the loop was closed, and with it went whoever waited
                    continue


def _wake(future: "Future[None]") -> None:
    if not future.done():
        future.set_result(None)
