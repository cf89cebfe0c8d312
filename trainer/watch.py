"""The watcher: claims each due refresh exactly once and runs it as a child process.

What is due follows from the database alone, so downtime is caught up by one run, and any number of
watchers may look: a slot is its run's unique key, and the first to insert it has the night. The child is a
session of its own with half of the cores and low priority, by which it knows that it is not alone on a GPU
(night.py); where memory runs out the kernel ends it rather than the chat. Its lease is renewed while it
lives, and how it ended is recorded here where it could not do so itself. Beside the nights it looks after
backups and old runs (upkeep.py).

    trainer watch
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import forecast, rankings, requests, runs, schedules
from data.cron import next_times
from data.database import Database
from data.errors import Problem
from data.home import Home
from data.records import Run, RunState, Schedule
from data.runfolder import LOG, TAKEN_UP
from data.snapshots import count_taught
from trainer.reasons import KILLED, SHUT_DOWN, is_worth_resuming
from trainer.schedule import due, slot_time
from trainer.upkeep import Upkeep

log = logging.getLogger(__name__)

TICK_SECONDS = 5.0
_DAY_SECONDS = 86400.0
_NO_MEMORY = (
    " - the machine was probably out of memory: close other programs, or learn with --quick, a smaller "
    "--minibatch or a smaller --model"
)
"""What signal 9 means where nobody sent it."""
_OOM_SCORE = "800"
"""Of 1000: whom the kernel ends first."""
GRACE_SECONDS = 3.0
"""Between the request to end and the kill; the server gives the watcher itself `TRAINER_GRACE_SECONDS`."""


def last_slot(db: Database) -> str | None:
    """The latest scheduled slot that any run has taken."""
    taken = [run.key for run in runs.list_all(db, limit=200) if run.kind == "slot"]
    return max(taken, key=slot_time, default=None)


def claim_asked(db: Database, config: Mapping[str, Any], now: float) -> Run | None:
    """Claims the refresh that an operator asked for on the page, if nobody else has it."""
    key = requests.pending(db)
    return runs.claim(db, key, config=config, now=now) if key else None


def claim_due(
    db: Database, schedule: Schedule, config: Mapping[str, Any], *, now: float, since: float
) -> Run | None:
    """Claims the scheduled refresh that is due at `now`, if there is one and nobody else has it.

    A slot at which too few new rankings lay is recorded as a run with nothing to learn; only where no slot
    was ever taken and this one came before `since` (the watcher's start) is it passed over without a word.
    """
    last = last_slot(db)
    key = due(schedule, now, last)
    if key is None:
        return None
    at = slot_time(key)
    fresh = rankings.count(db, after=runs.learned_until(db, now), until=at)
    fewest = config.get("min_rankings", 0)
    reason = too_few(fresh, count_taught(db, at, fewest), schedule.min_rankings, fewest)
    if reason and last is None and at < since:
        return None
    with db.write():  # one that is not to run is never seen running
        run = runs.claim(db, key, config=config, now=now)
        if run is None or reason is None:
            return run
        runs.finish(db, run, state="nothing_to_learn", reason=reason)
    return None


def too_few(fresh: int, total: int, wanted: int, fewest: int) -> str | None:
    """Why `fresh` new rankings, and `total` with old ones and edited replies, start no night, where `wanted`
    new ones are asked for and `fewest` in all; None where they start one."""
    if fresh < wanted:
        lay = f"Only {fresh} of {wanted} new rankings"
        remedy = 'rank more, or lower "trainer schedule --min-rankings"'
    elif total < fewest:
        lay = f"Only {total} of the {fewest} rankings and edited replies that a night needs in all"
        remedy = "rank more"
    else:
        return None
    return f"{lay} lay there when it was time - what serves stays; {remedy}."


def take_up(db: Database, home: Home, *, now: float, since: float) -> Run | None:
    """The last night again, where its process or the whole machine was ended, or the database was held by
    others for too long: it goes on where it was.

    Always where that was before `since`, when this watcher began: all was shut down together. Otherwise once
    a run, across restarts: it may be the run itself that gets its process killed.
    """
    run = runs.latest(db)
    if run is None or not is_worth_resuming(run):
        return None
    ended_at = run.finished_at or now
    if now - ended_at > _DAY_SECONDS:
        return None
    mark = home.runs / run.id / TAKEN_UP
    is_free = run.reason == SHUT_DOWN and ended_at <= since
    if mark.exists() and not is_free:
        return None
    again = runs.resume(db, run.id, now=now)
    if again:
        if not is_free:
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
        log.info("Refresh %s goes on where it was.", run.key)
    return again


@dataclass
class Watcher:
    """Looks for what is due and runs it, one refresh at a time."""

    home: Home
    db: Database
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings of every refresh it starts, as stored with the run."""
    command: Sequence[str] = (sys.executable, "-m", "trainer", "refresh", "--run")
    """What is run, with the claimed run's id as its last argument."""
    since: float = field(default_factory=time.time)
    _run: Run | None = None
    _child: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._upkeep = Upkeep(self.home, self.db)

    def tick(self, now: float | None = None) -> None:
        """One look: leave a working child alone, bury one that ended, else start what is asked for or due."""
        now = time.time() if now is None else now
        schedule = schedules.get(self.db)
        is_readable = self._tell_times(schedule, now)
        self._upkeep.look(now)
        if self._child and self._run and self._child.poll() is None:
            runs.heartbeat(self.db, self._run, now=now)
            return
        self._bury("failed")
        runs.interrupt_expired(self.db, now)
        run = None if schedule.is_paused else take_up(self.db, self.home, now=now, since=self.since)
        run = run or claim_asked(self.db, self.config, now)
        if run is None and is_readable:
            run = claim_due(self.db, schedule, self.config, now=now, since=self.since)
        if run:
            self._run, self._child = run, self._start(run)

    def close(self) -> None:
        """Ends the child and all that it started: asked first, then killed."""
        if self._child:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self._child.pid, number)
                    self._child.wait(GRACE_SECONDS)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
        self._bury("interrupted", SHUT_DOWN)
        self._upkeep.close()

    def _tell_times(self, schedule: Schedule, now: float) -> bool:
        """Lets the operator's page know what was made of the schedule; False where it names no time."""
        try:
            times = [] if schedule.is_paused else [at.timestamp() for at in next_times(schedule, 5, now)]
        except Problem as problem:
            forecast.tell(self.db, schedule, [], str(problem))
            return False
        forecast.tell(self.db, schedule, times)
        return True

    def _start(self, run: Run) -> subprocess.Popen[bytes]:
        threads = str(max(1, cores() // 2))
        environment = {"NIGHTSCHOOL_HOME": str(self.home.root), "OMP_NUM_THREADS": threads}
        with log_file(self.home, run).open("ab") as output:
            child = subprocess.Popen(
                [*self.command, run.id],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that one signal reaches all of it
            )
        os.setpriority(os.PRIO_PROCESS, child.pid, max(10, os.getpriority(os.PRIO_PROCESS, child.pid)))
        with suppress(OSError):  # no Linux
            Path(f"/proc/{child.pid}/oom_score_adj").write_text(_OOM_SCORE)
        log.info("Refresh %s has started.", run.key)
        return child

    def _bury(self, state: RunState, reason: str = "") -> None:
        """Records how the child ended where it could not do so itself; without a reason, by its exit code."""
        if self._child is None or self._run is None:
            return
        code, run = self._child.wait(), self._run
        how = (
            f"{KILLED} by signal {-code}" if code < 0 else f"The training process ended with exit code {code}"
        )
        with self.db.write():
            now = runs.get(self.db, run.id)
            if (now.state, now.fencing_token) == ("running", run.fencing_token):
                remedy = _NO_MEMORY if code == -signal.SIGKILL else ""
                reason = reason or f"{how}{remedy}; its last words: {_last_words(self.home, run)}"
                if now.cancel_requested:
                    state = "cancelled"
                elif code < 0:
                    state = "interrupted"
                runs.finish(self.db, run, state=state, reason=reason)
        over = runs.get(self.db, run.id)
        log.info("Refresh %s is over (%s): %s", run.key, over.state, over.reason or f"{how}.")
        self._child = self._run = None


def watch(home: Home, db: Database, config: Mapping[str, Any]) -> None:
    """Looks every few seconds until SIGTERM or Ctrl-C, then ends the child too."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info(next_night(schedules.get(db), config.get("min_rankings", 0)))
    watcher = Watcher(home, db, config)
    try:
        while not stop.is_set():
            try:
                watcher.tick()
            except (Problem, OSError):  # a locked database or a full disk; the next look may go better
                log.exception("Looking for a due refresh failed; trying again.")
            stop.wait(TICK_SECONDS)
    finally:
        watcher.close()


def next_night(schedule: Schedule, fewest: int) -> str:
    """When it learns, and from how many rankings, for whoever starts it. The zone is named, since it may be
    the machine's; `fewest` are needed in all."""
    if schedule.is_paused:
        return 'The schedule is paused - "trainer schedule --resume" goes on with it.'
    try:
        (at,) = next_times(schedule, 1)
    except Problem as problem:
        return str(problem)
    wanted = schedules.wanted(schedule, fewest)
    return f"Learns next at {at:%Y-%m-%d %H:%M} {schedule.zone}, if {wanted} lie there then."


def cores() -> int:
    """How many cores this process may use: in a container with a cpuset, fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def log_file(home: Home, run: Run) -> Path:
    """Where the output of a run's process goes."""
    directory = home.runs / run.id
    directory.mkdir(exist_ok=True)
    return directory / LOG


def _last_words(home: Home, run: Run) -> str:
    """The last line that the child has printed: a Problem's sentence, or a traceback's exception."""
    lines = log_file(home, run).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[-500:] for line in reversed(lines) if line.strip()), "none.")
