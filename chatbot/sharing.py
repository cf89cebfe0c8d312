"""The cores are shared while a refresh runs: chat and trainer get half of them each.

Two pools of threads on the same cores wait for each other at every layer and slow both down many times over;
two that have cores of their own do not. By day the engine has the whole machine.
"""

import time

from chatbot.engine import Engine
from chatbot.repeating import Repeating
from data import runs
from data.database import Database

INTERVAL_SECONDS = 1.0


class Sharing:
    """Tells the engine how many threads it may use, as runs begin and end."""

    def __init__(self, db: Database, engine: Engine, threads: int = 0) -> None:
        """`threads` are those of a server that has the machine to itself; 0 is what the engine began with."""
        self._db = db
        self._engine = engine
        self._all = threads or engine.threads
        self._repeating = Repeating(self.share_once, INTERVAL_SECONDS, "sharing")

    def start(self) -> None:
        self._repeating.start()

    def close(self) -> None:
        self._repeating.close()

    def share_once(self) -> None:
        """Look, and tell the engine."""
        latest = runs.latest(self._db)
        is_learning = latest is not None and latest.is_alive(time.time())
        self._engine.threads = max(1, self._all // 2) if is_learning else self._all
