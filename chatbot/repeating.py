"""A thread that does one thing again and again, whatever happens."""

import logging
import threading
from collections.abc import Callable

from chatbot.threads import lower_priority

log = logging.getLogger(__name__)


class Repeating:
    """Calls `work` every `seconds`, from `start` to `close`. A call that fails is logged; the next comes."""

    def __init__(
        self, work: Callable[[], object], seconds: float, name: str, *, is_urgent: bool = True
    ) -> None:
        """`work` that is not urgent is done when the rest of the process leaves it a core."""
        self._work = work
        self._seconds = seconds
        self._is_urgent = is_urgent
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, patience: float | None = None) -> None:
        """End after the call under way, which is waited for, at most so many seconds. Without a start, or
        twice, it is harmless."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(patience)

    def _loop(self) -> None:
        if not self._is_urgent:
            lower_priority()
        while not self._ending.wait(self._seconds):
            try:
                self._work()
            except Exception:
                log.exception(
                    "A round of %r failed; the next comes in %g s.", self._thread.name, self._seconds
                )
