"""When a refresh is due. Nothing here looks at the clock by itself or remembers anything; see watch.py.

A slot is a wall-clock time in the operator's zone, `2026-11-21T03:30 Europe/Berlin`. What a cron expression
says, and how the wall clock becomes an instant, is in data/cron.py.
"""

from datetime import datetime, timedelta

from data.cron import instant, slots, wall_clock, zone_of
from data.records import Schedule

_LOOK_BACK = [timedelta(hours=1), *(timedelta(days=days) for days in (1, 7, 31, 366, 8 * 366))]
"""How far back the newest slot is searched for, step by step; 29 February may be eight years away."""


def due(schedule: Schedule, now: float, last_slot: str | None) -> str | None:
    """The newest slot that has come, unless `last_slot` or a later one was taken; None where none is due.

    Slots from before the schedule was last changed are not due; of several missed ones only the newest is.
    """
    newest = _newest_slot(schedule, now)
    if schedule.is_paused or newest is None:
        return None
    before = (schedule.updated_at, slot_time(last_slot) if last_slot else 0.0)
    # Of a day that has not come the clock was wrong then; the unique key still guards each slot.
    believed = [at for at in before if at <= now + timedelta(days=2).total_seconds()]
    return newest if slot_time(newest) > max(believed, default=0.0) else None


def slot_time(key: str) -> float:
    """The instant of a slot key such as `2026-11-21T03:30 Europe/Berlin`."""
    wall, zone = key.split(" ")
    return instant(datetime.fromisoformat(wall), zone_of(zone))


def _newest_slot(schedule: Schedule, now: float) -> str | None:
    zone = zone_of(schedule.zone)
    # In a repeated hour the wall clock is behind slots that have come already: look a little ahead of it.
    end = wall_clock(now, zone) + timedelta(hours=3)
    for window in _LOOK_BACK:
        start = end - timedelta(hours=3) - window
        if come := [slot for slot in slots(schedule.cron, start, end) if instant(slot, zone) <= now]:
            newest = max(come, key=lambda slot: (instant(slot, zone), slot))
            return f"{newest:%Y-%m-%dT%H:%M} {schedule.zone}"
    return None
