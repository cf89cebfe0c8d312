"""The cores are shared while a refresh runs: chat and trainer get half of them each.

Two pools of threads on the same cores wait for each other at every layer and slow both down many times over;
two that have cores of their own do not. By day the engine has the whole machine.
"""

import logging
import os
import threading

from chatbot.engine import Engine
from data import runs
from data.database import Database

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


class Sharing:
    """Tells the engine how many threads it may use, as runs begin and end."""

    def __init__(self, db: Database, engine: Engine, threads: int = 0) -> None:
        """`threads` are those of a server that has the machine to itself; 0 is every core."""
        self._db = db
        self._engine = engine
        self._all = threads or len(os.sched_getaffinity(0))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sharing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def share_once(self) -> None:
        """Look, and tell the engine."""
        latest = runs.latest(self._db)
        is_learning = latest is not None and latest.state == "running"
        self._engine.threads = max(1, self._all // 2) if is_learning else self._all

    def _loop(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            try:
                self.share_once()
            except Exception:
                log.exception("Looking whether a refresh runs failed; trying again.")
