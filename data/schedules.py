"""When a refresh is due: one row, set by command or page. Whether the cron line makes sense is for
data/cron.py to say, which both ask first; here it is only remembered."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

from data import audit
from data.database import Database
from data.errors import Refused
from data.records import FEWEST_RANKINGS, Schedule
from data.text import clean

_TIMEZONE = Path("/etc/timezone")
_LOCALTIME = Path("/etc/localtime")
_ALSO_UTC = ("Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu")


def get(db: Database) -> Schedule:
    """The schedule; where none was set, the default one in the zone of this machine."""
    row = db.one("SELECT * FROM schedule")
    if row is None:
        return Schedule(zone=machine_zone())
    return Schedule(row["cron"], row["zone"], row["min_rankings"], bool(row["is_paused"]), row["updated_at"])


def set_(db: Database, schedule: Schedule, actor: str) -> Schedule:
    """Stores the schedule and who set it; returns it with its time."""
    if not 0 <= schedule.min_rankings <= 1_000_000:
        raise Refused(f"A minimum of {schedule.min_rankings!r} rankings is out of range - use 0 to 1000000.")
    stored = replace(
        schedule, cron=clean(schedule.cron).strip(), zone=clean(schedule.zone).strip(), updated_at=time.time()
    )
    values = (stored.cron, stored.zone, stored.min_rankings, int(stored.is_paused), stored.updated_at)
    with db.write() as conn:
        conn.execute(
            "INSERT OR REPLACE INTO schedule (id, cron, zone, min_rankings, is_paused, updated_at)"
            " VALUES (1, ?, ?, ?, ?, ?)",
            values,
        )
        detail = dict(zip(("cron", "zone", "min_rankings", "is_paused"), values[:4], strict=True))
        audit.record(db, actor, "set_schedule", detail | {"is_paused": stored.is_paused})
    return stored


def wanted(schedule: Schedule, fewest: int = FEWEST_RANKINGS) -> str:
    """The rankings that start a night, in words; `fewest` is what it needs in all."""
    also = f", {fewest} in all," if schedule.min_rankings < fewest else ""
    return f"{schedule.min_rankings} new ranking{'s' * (schedule.min_rankings != 1)}{also}"


def machine_zone() -> str:
    """The time zone of this machine by its name, as in `Europe/Berlin`; UTC where it tells none."""
    for name in _names():
        with suppress(KeyError, ValueError, OSError):
            ZoneInfo(name)
            return "UTC" if name in _ALSO_UTC else name
    return "UTC"


def _names() -> Iterator[str]:
    """What may be the zone's name, the surest first."""
    yield os.environ.get("TZ", "").removeprefix(":")
    with suppress(OSError, UnicodeDecodeError):
        yield _TIMEZONE.read_text(encoding="utf-8").strip()
    yield os.path.realpath(_LOCALTIME).partition("zoneinfo/")[2]
