"""When the next refreshes are due, as the trainer tells the operator's page: `tell` and `told`.

The page shows what will happen, not what should: so the trainer, where one runs, writes down what it made of
the present schedule as a row of the audit log, and only when that has changed.

`trainer watch`, at each tick:  tell(db, schedule, times)  or  tell(db, schedule, [], problem)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data import audit
from data.database import Database
from data.records import Schedule

READ = "read_schedule"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the trainer made of a schedule: the next times, or a sentence on why there are none."""

    times: tuple[float, ...]
    problem: str


def tell(db: Database, schedule: Schedule, times: Sequence[float], problem: str = "") -> None:
    """Write down the next times of `schedule` (seconds since the epoch), unless they stand there already."""
    forecast = Forecast(tuple(times), problem)
    with db.write():
        if told(db, schedule) != forecast:
            detail = {"of": schedule.updated_at, "times": forecast.times, "problem": problem}
            audit.record(db, audit.TRAINER, READ, detail)


def told(db: Database, schedule: Schedule) -> Forecast | None:
    """What the trainer last made of exactly this schedule; None while it has not looked."""
    last = audit.newest(db, READ)
    if last is None or last.detail["of"] != schedule.updated_at:
        return None
    return Forecast(tuple(last.detail["times"]), last.detail["problem"])
