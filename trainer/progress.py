"""How far a night is: one bar in the terminal, the same as rows that the operator page shows.

Also the place where a run learns that it must stop: every report of progress checks whether the operator
has cancelled the run or the lease is lost. A thread of its own renews the lease.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

from data import runs
from data.database import Database
from data.errors import Problem
from data.records import FINE_TUNING_STAGES, NIGHT_STAGES, Run

log = logging.getLogger(__name__)

STAGES = dict(zip(NIGHT_STAGES, (0.01, 0.03, 0.29, 0.1, 0.33, 0.22, 0.02), strict=True))
"""The stages of a night in order, and the share of its time that each takes (benchmarks/RESULTS.md)."""
FINE_TUNING = dict(zip(FINE_TUNING_STAGES, (0.01, 0.94, 0.05), strict=True))
"""The same of `trainer sft`."""

_HEARTBEAT_SECONDS = 15.0
_ROW_SECONDS = 1.0


class Cancelled(Problem):
    """The operator cancelled the run, or another process took its lease."""

    exit_code = 4


class Progress:
    """Tells terminal and database how far `run` is. A context manager: inside, the lease is renewed.

    The run ends with the stage `last`, or with all of them. The time that is left follows from what this
    process has done itself: what it found done by an earlier one took no time of its own.

    quiet: nothing in the terminal.
    is_told: False for the members of a team besides its chief: no terminal, no rows, no lease, no cancelling.
    """

    def __init__(
        self,
        db: Database,
        run: Run,
        *,
        stages: Mapping[str, float] = STAGES,
        last: str | None = None,
        quiet: bool = False,
        is_told: bool = True,
    ) -> None:
        self._db = db
        self._run = run
        self._stages = stages
        self._is_told = is_told
        self._quiet = quiet or not is_told
        self._stage = next(iter(stages))
        self._end = self._done_before(last) + stages[last] if last else 1.0
        self._started = time.monotonic()
        self._found = run.progress
        self._mark: tuple[float, float] | None = None if run.progress else (0.0, self._started)
        self._stage_started = self._started
        self._told = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        layout = "{percentage:3.0f}% |{bar:24}| {elapsed} {postfix}"
        is_hidden = self._quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=1.0, bar_format=layout, file=sys.stderr, disable=is_hidden)
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        if self._is_told:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._bar.close()

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each stage, the present one so far."""
        present = self._seconds.get(self._stage, 0.0) + time.monotonic() - self._stage_started
        return {**self._seconds, self._stage: present}

    def enter(self, stage: str, message: str) -> None:
        """The run goes on to `stage`."""
        self._seconds = self.seconds
        now = time.monotonic()
        self._stage, self._stage_started, self._told = stage, now, 0.0
        if self._bar.disable and not self._quiet:
            elapsed = now - self._started
            print(f"[{elapsed:6.0f} s] {message}{_left(self._predict(0.0)[1])}", file=sys.stderr, flush=True)
        self.tell(0.0, message)

    def begin_anew(self) -> None:
        """What an earlier process had done of the present stage, and after it, was thrown away."""
        self._found = self._done_before(self._stage)

    def _predict(self, fraction: float) -> tuple[float, float | None]:
        """The share of the run that is done with `fraction` of the stage, and the seconds that are left."""
        done = self._done_before(self._stage) + self._stages[self._stage] * fraction
        now = time.monotonic()
        if self._mark is None and done > self._found:
            self._mark = (done, now)
        first, since = self._mark or (done, now)
        return done, (now - since) * (self._end - done) / (done - first) if done - first > 0.02 else None

    def _done_before(self, stage: str) -> float:
        names = list(self._stages)
        return sum(self._stages[name] for name in names[: names.index(stage)])

    def tell(self, fraction: float, message: str) -> None:
        """`fraction` of the present stage is done. Raises Cancelled where the run must stop."""
        now = time.monotonic()
        if not self._is_told or (now - self._told < _ROW_SECONDS and fraction < 1.0):
            return
        self._told = now
        done, eta = self._predict(fraction)
        with _unless_unwritable():
            runs.report(
                self._db, self._run, stage=self._stage, progress=done, eta_seconds=eta, message=message
            )
        self._bar.set_postfix_str(message + _left(eta), refresh=False)
        self._bar.update(done - self._bar.n)
        row = runs.get(self._db, self._run.id)
        if (row.state, row.fencing_token) != ("running", self._run.fencing_token):
            raise Cancelled("The run lost its lease to another process - nothing was published.")
        if row.cancel_requested:
            raise Cancelled("The run was cancelled by an operator - what served before still serves.")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store the metrics of one step of the present stage."""
        if self._is_told:
            with _unless_unwritable():
                runs.log(self._db, self._run, self._stage, step, dict(metrics))

    def _renew(self) -> None:
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            try:
                is_ours = runs.heartbeat(self._db, self._run)
            except Problem as problem:  # a locked or full disk may pass before the lease does
                log.warning("The lease was not renewed: %s", problem)
                continue
            if not is_ours:  # `tell` finds that out by itself
                return


@contextmanager
def _unless_unwritable() -> Iterator[None]:
    """What is told of a run is not worth the run: a locked database or a full disk may pass."""
    try:
        yield
    except Problem as problem:
        log.warning("The progress was not written: %s", problem)


def _left(seconds: float | None) -> str:
    return f" About {max(seconds / 60, 1):.0f} min left." if seconds else ""
