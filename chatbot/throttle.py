"""How many wrong passwords are too many, wherever one is typed."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from data.errors import Busy

EVERYWHERE = 10
"""So many addresses may use up their wrong passwords on one name before it is closed to all."""


class TooManyAttempts(Busy):
    """More wrong passwords than a person makes."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many wrong passwords - try again in {retry_after} seconds.")
        self.retry_after = retry_after


class Throttle:
    """At most `limit` wrong passwords per `seconds` from each address, and `EVERYWHERE` as many for a name.

    A stranger who types wrong passwords for somebody's name keeps themselves out, and not that person.
    """

    def __init__(self, limit: int = 10, seconds: float = 60.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self._wrong: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def attempt(self, *keys: str) -> Iterator[None]:
        """An attempt, wrong for each key if the block raises. Raises TooManyAttempts before the block runs.

        It counts as wrong until it succeeds, so that a thousand at once are not a thousand guesses.
        """
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            full = [times for key in keys if len(times := self._wrong.get(key, deque())) >= self._most(key)]
            if full:
                raise TooManyAttempts(max(1, math.ceil(max(times[0] for times in full) + self.seconds - now)))
            for key in keys:
                self._wrong.setdefault(key, deque()).append(now)
        yield
        with self._lock:
            for key in keys:
                if self._wrong.get(key):
                    self._wrong[key].pop()

    def _most(self, key: str) -> int:
        return self.limit * (EVERYWHERE if key.startswith("name:") else 1)

    def _forget(self, now: float) -> None:
        for key in list(self._wrong):
            times = self._wrong[key]
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if not times:
                del self._wrong[key]
