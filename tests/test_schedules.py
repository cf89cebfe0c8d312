"""schedules.py: one row that says when, and who said so."""

import time

import pytest

from data import people, schedules
from data.database import Database
from data.errors import Refused
from data.records import Schedule


def test_nothing_set_is_the_default(db: Database) -> None:
    assert schedules.get(db) == Schedule()


def test_what_is_set_is_kept_with_its_time_and_who_set_it(db: Database) -> None:
    stored = schedules.set_(db, Schedule(" 0 4 * * 1 ", "Europe/Berlin", 50, True), "ada")
    assert (stored.cron, stored.zone, stored.min_rankings, stored.is_paused) == (
        "0 4 * * 1",
        "Europe/Berlin",
        50,
        True,
    )
    assert abs(stored.updated_at - time.time()) < 60
    assert schedules.get(db) == stored
    (entry,) = people.audit_log(db)
    assert (entry.person, entry.action) == ("ada", "set_schedule")
    assert entry.detail == {
        "cron": "0 4 * * 1",
        "zone": "Europe/Berlin",
        "min_rankings": 50,
        "is_paused": True,
    }


def test_the_last_word_counts(db: Database) -> None:
    schedules.set_(db, Schedule(min_rankings=1), "ada")
    schedules.set_(db, Schedule(min_rankings=2), "ada")
    assert schedules.get(db).min_rankings == 2


@pytest.mark.parametrize("minimum", [-1, 10**7])
def test_a_minimum_out_of_range_is_refused(db: Database, minimum: int) -> None:
    with pytest.raises(Refused, match="out of range - use 0 to 1000000"):
        schedules.set_(db, Schedule(min_rankings=minimum), "ada")
