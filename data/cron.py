"""What a cron expression says: the times it names in an operator's zone, or a sentence on why it names none.

Times are reckoned on the wall clock first and turned into instants afterwards: the hour that autumn repeats
has each time once, not twice, and one that spring leaves out (02:30) comes at the instant it would have had.

APScheduler is used for its cron expressions alone; its job store and its zone arithmetic run a slot twice.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

from data.errors import Refused
from data.records import Schedule

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LOOK_AHEAD = timedelta(days=8 * 366)
"""How far the next times are searched for: 29 February may be eight years away."""


def validate(cron: str, zone: str) -> None:
    """Refuses, in a sentence, an expression or a zone that names no time."""
    zone_of(zone)
    if not next_times(Schedule(cron=cron, zone=zone), 1):
        raise Refused(f"The schedule {cron!r} names a day that never comes - use one that does.")


def next_times(schedule: Schedule, n: int, now: float | None = None) -> list[datetime]:
    """The next `n` instants at which slots come, in the schedule's zone."""
    zone = zone_of(schedule.zone)
    last = time.time() if now is None else now
    wall = wall_clock(last, zone)
    times: list[datetime] = []
    for slot in slots(schedule.cron, wall, wall + _LOOK_AHEAD):
        if len(times) == n:
            break
        if (at := instant(slot, zone)) > last:  # not so for the slots of an hour that comes again
            times.append(datetime.fromtimestamp(at, zone))
            last = at
    return times


def wall_clock(now: float, zone: ZoneInfo) -> datetime:
    """What the clock on the wall shows, as a naive time."""
    return datetime.fromtimestamp(now, zone).replace(tzinfo=None, fold=0)


def instant(wall: datetime, zone: ZoneInfo) -> float:
    """Of a repeated hour the first; of one left out, the instant it would have had (both by fold=0)."""
    return wall.replace(tzinfo=zone, fold=0).timestamp()


def slots(cron: str, start: datetime, end: datetime) -> Iterator[datetime]:
    """The wall-clock times after `start` up to `end` that `cron` names; UTC is a wall without DST."""
    trigger = _trigger(cron, end)
    moment = start + timedelta(microseconds=1)
    while fire := trigger.get_next_fire_time(None, moment.replace(tzinfo=UTC)):
        slot: datetime = fire.replace(tzinfo=None)
        yield slot
        moment = slot + timedelta(microseconds=1)


def _trigger(cron: str, end: datetime) -> CronTrigger:
    parts = cron.split()
    if len(parts) != 5:
        raise Refused(
            f"{cron!r} is not a cron expression - give minute, hour, day, month, weekday, as in '30 3 * * *'."
        )
    minute, hour, day, month, weekday = parts
    if day != "*" and weekday != "*":
        raise Refused(
            f"{cron!r} names a day of the month and of the week - name one and leave the other '*'."
        )
    try:
        return CronTrigger(
            minute=minute,
            hour=hour,
            day=day,
            month=month,
            day_of_week=_named_weekdays(weekday),
            end_date=end.replace(tzinfo=UTC),
            timezone=UTC,
        )
    except ValueError as error:
        raise Refused(f"{cron!r} is not a cron expression: {error} - use one like '30 3 * * *'.") from error


def _named_weekdays(text: str) -> str:
    """Cron counts weekdays from Sunday, APScheduler from Monday: numbers become names, ranges lists."""
    parts = []
    for part in text.lower().split(","):
        if match := re.fullmatch(r"(\*|[0-7])(?:-([0-7]))?(?:/([1-9]))?", part):
            first, last, step = match.groups()
            start = 0 if first == "*" else int(first)
            stop = int(last) if last else (6 if first == "*" or step else start)
            if stop < start:
                raise ValueError(f"the weekdays {part!r} run backwards")
            parts += [_WEEKDAYS[number % 7] for number in range(start, stop + 1, int(step or 1))]
        else:
            parts.append(part)
    return "*" if text == "*" else ",".join(parts)


def zone_of(name: str) -> ZoneInfo:
    """The zone of this name. Raises Refused where there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Refused(f"No time zone {name!r} - give one like 'Europe/Berlin' or 'UTC'.") from error
