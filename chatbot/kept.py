"""A cache for figures that are slow to read and often looked at: what took longer to read is kept longer.

So looking takes about a fiftieth of a core, however many look and however much there is to count, and where
the database is small nothing is kept at all. No cheap key tells whether the rows have changed: a ranking also
stops teaching when its chat is withdrawn or its person disabled.
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

KEPT_TIMES = 50
"""A reading is kept so many times as long as it took."""
FREE_SECONDS = 0.05
"""A reading that took less is not kept."""


class Kept(Generic[P, T]):
    """Called like `read`, it returns what `read` returns, or returned a while ago for the same arguments.

    Threads that call meanwhile wait for the one that is reading.
    """

    def __init__(self, read: Callable[P, T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._last: tuple[object, T] | None = None
        self._until = 0.0

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        asked = (args, kwargs)
        with self._lock:
            began = time.monotonic()
            if self._last and self._last[0] == asked and began < self._until:
                return self._last[1]
            said = self._read(*args, **kwargs)
            now = time.monotonic()
            took = now - began
            self._last, self._until = (asked, said), now + (KEPT_TIMES * took if took >= FREE_SECONDS else 0)
            return said
