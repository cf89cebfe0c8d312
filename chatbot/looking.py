"""A thread that looks at something again and again, whatever happens."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Looking:
    """Calls `look` every `seconds`, from `start` to `close`. One that fails is logged; the next comes."""

    def __init__(self, look: Callable[[], object], seconds: float, name: str) -> None:
        self._look = look
        self._seconds = seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End after the look under way. Without a start, or twice, it is harmless."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._ending.wait(self._seconds):
            try:
                self._look()
            except Exception:
                log.exception(
                    "A look of %r failed; the next comes in %g s.", self._thread.name, self._seconds
                )
