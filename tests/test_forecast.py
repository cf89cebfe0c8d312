"""The next times of a schedule, from the trainer to the page."""

from data import audit, forecast, schedules
from data.database import Database
from data.records import Schedule


def test_nothing_is_known_until_the_trainer_has_looked(db: Database) -> None:
    assert forecast.told(db, schedules.get(db)) is None


def test_what_was_told_is_of_this_schedule_only(db: Database) -> None:
    forecast.tell(db, schedules.get(db), [10.0, 20.0])
    assert forecast.told(db, schedules.get(db)) == forecast.Forecast((10.0, 20.0), "")
    changed = schedules.set_(db, Schedule(cron="0 4 * * *"), "olga")
    assert forecast.told(db, changed) is None


def test_a_problem_is_told_in_its_own_words(db: Database) -> None:
    forecast.tell(db, schedules.get(db), [], "There is no minute 61 - use 0 to 59.")
    assert forecast.told(db, schedules.get(db)) == forecast.Forecast(
        (), "There is no minute 61 - use 0 to 59."
    )


def test_the_trainer_repeats_itself_only_when_something_changed(db: Database) -> None:
    for times in ([1.0, 2.0], [1.0, 2.0], [2.0, 3.0]):
        forecast.tell(db, schedules.get(db), times)
    assert len(audit.entries(db)) == 2
