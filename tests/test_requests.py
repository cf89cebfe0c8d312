"""A refresh asked for by hand: one wish, one run."""

import pytest

from data import audit, people, requests, runs
from data.database import Database
from data.records import Person


@pytest.fixture
def olga(db: Database) -> Person:
    return people.add(db, "olga", "operator")


def test_nobody_waits_at_first(db: Database) -> None:
    assert requests.pending(db) is None


def test_asking_twice_is_one_wish(db: Database, olga: Person) -> None:
    key = requests.ask(db, olga)
    assert requests.ask(db, olga) == key == requests.pending(db)


def test_the_run_that_takes_a_wish_ends_it(db: Database, olga: Person) -> None:
    key = requests.ask(db, olga)
    run = runs.claim(db, key, config={})
    assert run is not None and requests.pending(db) is None
    assert runs.claim(db, key, config={}) is None


def test_a_wish_made_while_a_run_lives_waits_for_its_end(db: Database, olga: Person) -> None:
    run = runs.claim(db, "2026-11-21T03:30 UTC", config={})
    assert run is not None
    key = requests.ask(db, olga)
    assert runs.claim(db, key, config={}) is None and requests.pending(db) == key
    runs.finish(db, run, state="refused", reason="No better.")
    assert runs.claim(db, key, config={}) is not None


def test_a_wish_can_be_taken_back_and_made_again(db: Database, olga: Person) -> None:
    first = requests.ask(db, olga)
    assert requests.withdraw(db, olga) and requests.pending(db) is None
    assert not requests.withdraw(db, olga)
    assert requests.ask(db, olga) != first


def test_who_asked_is_written_down(db: Database, olga: Person) -> None:
    requests.ask(db, olga)
    assert (audit.entries(db)[0].person, audit.entries(db)[0].action) == ("olga", requests.ASKED)
