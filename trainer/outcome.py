"""What became of a run is written down, whatever became of it.

That is the last thing a run does: it waits its turn for longer than anybody would in front of a page. Work of
hours must not be lost to another's write, and a row that stays `running` keeps all other runs waiting until
its lease has expired.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from data import runs
from data.database import Database
from data.errors import Locked, Problem, disk_full
from data.records import Run, RunState
from trainer.progress import Cancelled
from trainer.reasons import ShutDown, reason_of
from trainer.team import SOLO, Deserted, Team

PATIENCE = 120.0
"""Seconds to wait for the database when a run ends: nothing else is left to do."""

_DESERTED = "A process of the team ended, whose last words its launcher has shown - launch all of them again."


@contextmanager
def recorded(db: Database, run: Run, too_little: type[Problem], *, team: Team = SOLO) -> Iterator[None]:
    """What ends the run in this block by an error becomes its state and its reason, and is raised again.

    too_little: what is raised where there is not enough to learn from.
    team: who works on it; of several only the chief writes.
    """
    try:
        yield
    except BaseException as error:
        state, reason = _state(error, too_little), _reason(error, run, team)
        # The lease was lost, and whoever holds it now has written this run off; or nothing can be written
        # here. What ended the run is told all the same, by the error itself.
        with suppress(Problem):
            if team.is_chief:
                finish(db, run, state=state, reason=reason)
        raise


def _state(error: BaseException, too_little: type[Problem]) -> RunState:
    ends: dict[type[BaseException], RunState] = {
        too_little: "nothing_to_learn",
        Cancelled: "cancelled",
        Locked: "interrupted",
        Deserted: "interrupted",
        KeyboardInterrupt: "interrupted",
    }
    return next((state for kind, state in ends.items() if isinstance(error, kind)), "failed")


def _reason(error: BaseException, run: Run, team: Team) -> str:
    """Why it ended, and how to go on with it where a person has to see to that.

    Where one of a team ends, the launcher tells the chief to shut down. A watcher, which knows of no
    launcher, must not take that for the end of the machine and go on alone.
    """
    is_deserted = team.size > 1 and isinstance(error, ShutDown | Deserted)
    if not (is_deserted or disk_full(error)):
        return reason_of(error)
    reason = _DESERTED if is_deserted else reason_of(error)
    command = "ppo" if run.kind == "reward" else "refresh --resume"
    return reason if run.kind == "sft" else f'{reason} "trainer {command} {run.id}" goes on with it.'


def finish(db: Database, run: Run, *, state: RunState, reason: str, version: str | None = None) -> Run:
    """Ends the run as `runs.finish` does, with PATIENCE."""
    return runs.finish(db, run, state=state, reason=reason, version=version, patience=PATIENCE)
