"""lessons.py: what a run learned from is found again, and by whom it was taught."""

from data import lessons, runs
from data.database import Database
from data.records import Run
from tests.stories import a_turn, frozen, rank, somebody


def claimed(db: Database, key: str = "tonight", now: float | None = None) -> Run:
    run = runs.claim(db, key, config={}, now=now)
    assert run is not None
    return run


def test_what_a_run_learned_from_is_written_down_once(db: Database) -> None:
    ada = somebody(db)
    ranking = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    run = claimed(db)
    for _ in range(2):
        runs.set_snapshot(db, run.id, frozen(db))
    rows = [tuple(row) for row in db.query("SELECT * FROM run_rankings")]
    assert rows == [(run.id, ranking.id, ada.id)]


def test_each_person_is_told_how_much_of_a_run_is_theirs(db: Database) -> None:
    ada, ben, run = somebody(db, "ada"), somebody(db, "ben"), claimed(db)
    for person in (ada, ben, ada):
        rank(db, person, a_turn(db, person), [1, 2, 3])
    runs.set_snapshot(db, run.id, frozen(db))
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert [lessons.count_by(db, run.id, person.id) for person in (ada, ben)] == [2, 1]
    assert lessons.count_by(db, None, ada.id) == 0, "of a version made by hand"


def test_the_lessons_that_were_thrown_away_go_and_no_others(db: Database) -> None:
    late, other = claimed(db, now=1000.0), claimed(db, "other", now=2000.0)
    run = runs.resume(db, late.id, now=3000.0)
    assert run is not None

    def left(one: Run) -> list[str]:
        rows = db.query("SELECT lesson_id FROM run_lessons WHERE run_id = ? ORDER BY 1", (one.id,))
        return [row["lesson_id"] for row in rows]

    for one in (run, other):
        lessons.note(db, one.id, ["a", "b", "c"])
    lessons.forget(db, late)  # its lease is lost
    lessons.forget(db, run, [])
    assert left(run) == ["a", "b", "c"]
    lessons.forget(db, run, ["a", "c", "of-no-run"])
    assert left(run) == ["b"]
    lessons.forget(db, run)
    assert left(run) == [] and left(other) == ["a", "b", "c"]


def test_the_runs_that_something_taught_are_found_whichever_way_it_did(db: Database) -> None:
    ada = somebody(db)
    taught, practised = claimed(db, now=1000.0), claimed(db, "other", now=2000.0)
    lessons.set_taught(db, taught.id, [("a", ada.id)], "0" * 64)
    lessons.note(db, practised.id, ["a", "b"])
    assert lessons.runs_taught_by(db, ["a"]) == {taught.id, practised.id}
    assert lessons.runs_taught_by(db, ["b", "c"]) == {practised.id}
    assert lessons.runs_taught_by(db, []) == set()


def test_all_that_was_learned_from_a_person_is_found(db: Database) -> None:
    ada, run = somebody(db), claimed(db)
    turn_id = str(a_turn(db, ada)[0].parent_id)
    lessons.set_taught(db, run.id, [("a", ada.id), ("b", somebody(db, "ben").id)], "0" * 64)
    lessons.note(db, run.id, [turn_id, "of-nobody"])
    assert set(lessons.of_person(db, ada.id)) == {"a", turn_id}
