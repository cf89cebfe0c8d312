"""Upkeep beside the nights: the day's backup of the database, old runs give back their room, and the
file loses the last traces of who was forgotten.

All may take a while, so they are done in a thread: the watcher's looks, which keep a night's lease alive, go
on meanwhile. What fails is logged and tried again an hour later.
"""

import logging
import threading

from data.database import Database
from data.errors import Problem
from data.forgetting import scrub
from data.home import Home
from data.recovery import back_up_daily
from trainer.prune import prune

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
WAIT_SECONDS = 2.0
"""For what is under way at the end; the server waits five for its trainer."""
KEEP_RUNS = 30
"""Runs that stay whole where nobody prunes by hand."""


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
        try:
            done = prune(self._db, self._home, keep=KEEP_RUNS)
            if done.runs:
                log.info("Pruned %d old runs: %.1f MB are free again.", len(done.runs), done.bytes / 1e6)
        except Exception:
            log.exception("Pruning old runs failed; trying again in an hour.")
        try:
            if scrub(self._db):
                log.info("Rewrote the database without traces of who was forgotten.")
        except Problem as problem:  # no room, or others write
            log.warning("The database still holds copies of deleted rows: %s", problem)
        except Exception:
            log.exception("Rewriting the database failed; trying again in an hour.")
