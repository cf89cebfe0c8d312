"""Each slot is due exactly once, whatever the clock, the zone and the operator do."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from data.cron import next_times, validate
from data.errors import Refused
from data.records import Schedule
from trainer.schedule import due, slot_time

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Africa/Casablanca",  # summer time ends for Ramadan
    "Asia/Kathmandu",
    "Pacific/Auckland",
]


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def nights(zone: str, cron: str = "30 3 * * *") -> Schedule:
    return Schedule(cron=cron, zone=zone)


def changes(zone: str) -> Iterator[datetime]:
    """The days from 2026 to 2028 on which the zone's offset changes."""
    day, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
    while day < end:
        following = day + timedelta(days=1)
        if day.astimezone(ZoneInfo(zone)).utcoffset() != following.astimezone(ZoneInfo(zone)).utcoffset():
            yield day
        day = following


def taken(schedule: Schedule, start: float, end: float, step: float = 900.0) -> list[str]:
    """What a watcher that looks every `step` seconds takes, in order."""
    slots: list[str] = []
    last = due(schedule, start, None)
    now = start
    while now <= end:
        if slot := due(schedule, now, last):
            slots.append(slot)
            last = slot
        now += step
    return slots


@pytest.mark.parametrize("cron", ["30 3 * * *", "30 2 * * *", "15 1 * * *", "0 0 * * *"])
@pytest.mark.parametrize("zone", ZONES)
def test_every_local_night_comes_exactly_once_across_all_clock_changes(zone: str, cron: str) -> None:
    for change in changes(zone):
        start, end = change - timedelta(days=2), change + timedelta(days=3)
        slots = taken(nights(zone, cron), start.timestamp(), end.timestamp())
        local = [date.fromisoformat(slot[:10]) for slot in slots]
        days = [local[0] + timedelta(days=n) for n in range(len(local))]
        assert local == days and len(days) >= 4, f"{zone} {cron} around {change:%Y-%m-%d}"


def test_the_zones_of_this_test_do_change_their_clocks() -> None:
    counts = {zone: len(list(changes(zone))) for zone in ZONES}
    assert counts["Europe/Berlin"] == counts["Pacific/Auckland"] == 6 and counts["UTC"] == 0
    assert counts["Africa/Casablanca"] >= 5


def test_a_time_that_spring_leaves_out_comes_once_an_hour_later_on_the_wall() -> None:
    schedule = nights("Europe/Berlin", "30 2 * * *")
    last = "2026-03-28T02:30 Europe/Berlin"
    assert due(schedule, at("2026-03-29T03:29"), last) is None
    slot = due(schedule, at("2026-03-29T03:30"), last)
    assert slot == "2026-03-29T02:30 Europe/Berlin"
    assert due(schedule, at("2026-03-30T02:29"), slot) is None


def test_an_hour_that_autumn_repeats_has_one_slot() -> None:
    schedule = nights("Europe/Berlin", "30 2 * * *")
    first = at("2026-10-25T02:30")
    slot = due(schedule, first, "2026-10-24T02:30 Europe/Berlin")
    assert slot == "2026-10-25T02:30 Europe/Berlin"
    assert all(due(schedule, first + minutes * 60, slot) is None for minutes in range(24 * 60))
    assert due(schedule, first + 25 * 3600, slot) == "2026-10-26T02:30 Europe/Berlin"


def test_half_hourly_slots_across_both_changes_are_taken_once_each() -> None:
    for change in changes("Europe/Berlin"):
        slots = taken(
            nights("Europe/Berlin", "*/30 * * * *"),
            change.timestamp() - 6 * 3600,
            change.timestamp() + 12 * 3600,
            300,
        )
        instants = [slot_time(slot) for slot in slots]
        assert max(Counter(slots).values()) == 1
        assert all(later > earlier for earlier, later in pairwise(instants))


@pytest.mark.parametrize("minutes", [1, 60, 24 * 60, 3 * 24 * 60])
def test_downtime_is_caught_up_by_one_run_of_the_newest_slot(minutes: int) -> None:
    schedule, last = nights("UTC"), "2026-11-20T03:30 UTC"
    back = at("2026-11-21T03:30", "UTC") + minutes * 60
    slot = due(schedule, back, last)
    assert slot is not None and 0 <= back - slot_time(slot) <= 86400
    assert due(schedule, back + 60, slot) is None


@pytest.mark.parametrize("jump", [-86400, -3600, -120])
def test_a_clock_set_back_gives_no_slot_twice(jump: int) -> None:
    schedule, now = nights("UTC"), at("2026-11-21T03:31", "UTC")
    slot = due(schedule, now, "2026-11-20T03:30 UTC")
    assert slot == "2026-11-21T03:30 UTC"
    assert all(due(schedule, now + jump + step, slot) is None for step in range(0, -jump, 60))


def test_a_clock_that_was_a_year_ahead_does_not_stop_the_nights() -> None:
    schedule, wrong = nights("UTC"), "2027-11-21T03:30 UTC"
    assert due(schedule, at("2026-11-21T04:00", "UTC"), wrong) == "2026-11-21T03:30 UTC"


def test_a_schedule_that_was_set_while_the_clock_was_ahead_counts_at_once() -> None:
    now = at("2026-11-21T04:00", "UTC")
    ahead = Schedule(cron="30 3 * * *", zone="UTC", updated_at=now + 30 * 86400)
    assert due(ahead, now, None) == "2026-11-21T03:30 UTC"
    assert due(ahead, now, "2026-11-21T03:30 UTC") is None


def test_a_paused_schedule_and_one_set_after_the_slot_are_not_due() -> None:
    now = at("2026-11-21T10:00", "UTC")
    assert due(Schedule(is_paused=True), now, None) is None
    assert due(Schedule(cron="0 9 * * *", updated_at=now - 60), now, None) is None
    assert due(Schedule(cron="0 9 * * *", updated_at=now - 60), now + 86400, None) == "2026-11-22T09:00 UTC"


def test_weekdays_count_from_sunday_as_cron_does() -> None:
    def weekdays(cron: str) -> set[str]:
        return {f"{time:%a}" for time in next_times(nights("UTC", cron), 14, at("2026-11-21T00:00", "UTC"))}

    assert weekdays("0 4 * * 0") == weekdays("0 4 * * 7") == weekdays("0 4 * * sun") == {"Sun"}
    assert weekdays("0 4 * * 1-5") == weekdays("0 4 * * mon-fri") == {"Mon", "Tue", "Wed", "Thu", "Fri"}
    assert weekdays("0 4 * * 0-2,6") == {"Sun", "Mon", "Tue", "Sat"}
    assert weekdays("0 4 * * */3") == {"Sun", "Wed", "Sat"}


def test_the_next_times_are_in_the_operators_zone_and_skip_what_has_come() -> None:
    times = next_times(nights("Europe/Berlin"), 3, at("2026-10-24T03:30"))
    assert [f"{time:%d. %H:%M %z}" for time in times] == [
        "25. 03:30 +0100",
        "26. 03:30 +0100",
        "27. 03:30 +0100",
    ]
    again = datetime(2026, 10, 25, 2, 15, fold=1, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    assert f"{next_times(nights('Europe/Berlin', '30 2 * * *'), 1, again)[0]:%d. %H:%M}" == "26. 02:30"


def test_the_29th_of_february_comes_every_four_years() -> None:
    times = next_times(nights("UTC", "0 4 29 2 *"), 5, at("2026-11-21T00:00", "UTC"))
    assert [time.year for time in times] == [2028, 2032]
    assert (
        due(nights("UTC", "0 4 29 2 *"), times[0].timestamp() + 300 * 86400, None) == "2028-02-29T04:00 UTC"
    )


@pytest.mark.parametrize(
    ("cron", "zone", "sentence"),
    [
        ("25:00", "UTC", "'25:00' is not a cron expression - give minute, hour"),
        (
            "0 25 * * *",
            "UTC",
            "'0 25 [*] [*] [*]' is not a cron expression: .*higher than the maximum.* - use",
        ),
        ("0 4 * * 5-2", "UTC", "run backwards"),
        ("0 4 * * 9", "UTC", "is not a cron expression"),
        ("", "UTC", "is not a cron expression"),
        ("0 4 31 2 *", "UTC", "a day that never comes"),
        ("0 4 1 * 1", "UTC", "name one and leave the other"),
        ("0 4 * * *", "Mars/Olympus", "No time zone 'Mars/Olympus' - give one like"),
        ("0 4 * * *", "../../etc/passwd", "No time zone"),
        ("0 4 * * *", "", "No time zone ''"),
    ],
)
def test_a_schedule_that_names_no_time_is_refused_with_a_sentence(
    cron: str, zone: str, sentence: str
) -> None:
    with pytest.raises(Refused, match=sentence):
        validate(cron, zone)
