"""schedules.py: one row that says when, and who said so."""

import time
from pathlib import Path

import pytest

from data import audit, schedules
from data.database import Database
from data.errors import Refused
from data.records import Schedule


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a machine keeps its zone, empty."""
    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(schedules, "_TIMEZONE", tmp_path / "timezone")
    monkeypatch.setattr(schedules, "_LOCALTIME", tmp_path / "localtime")
    return tmp_path


def test_nothing_set_is_the_default_in_the_zone_of_the_machine(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    assert schedules.get(db) == Schedule(zone="Asia/Shanghai")
    stored = schedules.set_(db, Schedule(zone="UTC"), "ada")
    assert schedules.get(db) == stored and stored.zone == "UTC"


@pytest.mark.parametrize(
    ("variable", "timezone", "localtime", "zone"),
    [
        (None, None, None, "UTC"),
        ("Europe/Berlin", "Asia/Tokyo\n", "Asia/Seoul", "Europe/Berlin"),
        (":Europe/Berlin", None, None, "Europe/Berlin"),
        (None, "Asia/Tokyo\n", "Asia/Seoul", "Asia/Tokyo"),
        (None, None, "America/Argentina/Ushuaia", "America/Argentina/Ushuaia"),
        (None, "Etc/UTC\n", None, "UTC"),
        ("CET-1CEST,M3.5.0", "../../etc/passwd", "Asia/Seoul", "Asia/Seoul"),  # names of no zone
        ("", "\n", "", "UTC"),
    ],
)
def test_the_zone_of_the_machine(
    etc: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    timezone: str | None,
    localtime: str | None,
    zone: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("TZ", variable)
    if timezone is not None:
        (etc / "timezone").write_text(timezone)
    if localtime is not None:
        (etc / "localtime").symlink_to(f"/usr/share/zoneinfo/{localtime}")
    assert schedules.machine_zone() == zone


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
    (entry,) = audit.entries(db)
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


@pytest.mark.parametrize(
    ("least", "words"),
    [
        (20, "20 new rankings"),
        (12, "12 new rankings"),
        (3, "3 new rankings, 12 in all,"),
        (1, "1 new ranking, 12 in all,"),
    ],
)
def test_what_starts_a_night_is_said_with_what_any_night_needs(least: int, words: str) -> None:
    assert schedules.wanted(Schedule(min_rankings=least)) == words
