"""Upkeep beside the nights: the day's backup of the database.

It takes as long as the database is large, so it is done in a thread: the watcher's looks, which keep a
night's lease alive, go on meanwhile. What fails is logged and tried again at the next look.
"""

import logging
import threading

from data.database import Database
from data.home import Home
from data.recovery import back_up_daily

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
WAIT_SECONDS = 8.0


class Upkeep:
    """What a watcher does each hour besides looking for nights."""

    def __init__(self, home: Home, db: Database) -> None:
        self._home = home
        self._db = db
        self._began_at: float | None = None
        self._thread: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Begins at once, then each hour, unless the last time is not over yet. Returns at once."""
        is_soon = self._began_at is not None and 0 <= now - self._began_at < EVERY_SECONDS
        if is_soon or (self._thread and self._thread.is_alive()):
            return
        self._began_at = now
        self._thread = threading.Thread(target=self._work, args=(now,), name="upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits a little for what is under way; what takes longer ends with the process."""
        if self._thread:
            self._thread.join(WAIT_SECONDS)

    def _work(self, now: float) -> None:
        try:
            if made := back_up_daily(self._db, self._home, now):
                log.info("Backed up to %s.", made)
        except Exception:
            log.exception("The daily backup failed; trying again in an hour.")
