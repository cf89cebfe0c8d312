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
from trainer.progress import Cancelled, end_of, reason_of

PATIENCE = 120.0
"""Seconds to wait for the database when a run ends: nothing else is left to do."""

_ENDS: dict[type[BaseException], RunState] = {
    Cancelled: "cancelled",
    Locked: "interrupted",
    KeyboardInterrupt: "interrupted",
}


@contextmanager
def recorded(db: Database, run: Run, too_little: type[Problem], *, is_chief: bool = True) -> Iterator[None]:
    """What ends the run in this block by an error becomes its state and its reason, and is raised again.

    too_little: what is raised where there is not enough to learn from.
    is_chief: of a team (trainer/team.py), whose others write nothing.
    """
    try:
        yield
    except BaseException as error:
        state, reason = end_of(error, {too_little: "nothing_to_learn", **_ENDS}), reason_of(error)
        if disk_full(error):
            reason += _go_on(run)
        # The lease was lost, and whoever holds it now has written this run off; or nothing can be written
        # here. What ended the run is told all the same, by the error itself.
        with suppress(Problem):
            if is_chief:
                finish(db, run, state=state, reason=reason)
        raise


def _go_on(run: Run) -> str:
    """How to have the rest of a run, where it need not begin anew."""
    return "" if run.kind == "sft" else f' "trainer refresh --resume {run.id}" goes on where it was.'


def finish(db: Database, run: Run, *, state: RunState, reason: str, version: str | None = None) -> Run:
    """Ends the run as `runs.finish` does, with PATIENCE."""
    return runs.finish(
        db, run.id, run.fencing_token, state=state, reason=reason, version=version, patience=PATIENCE
    )
