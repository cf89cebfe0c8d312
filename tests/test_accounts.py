"""Accounts: passwords, sessions, one-time links and roles."""

import threading
import time
from types import SimpleNamespace

import pytest

from chatbot import accounts
from chatbot.accounts import WrongPassword
from chatbot.throttle import Throttle, TooManyAttempts
from data import audit, people
from data.database import Database
from data.errors import NotFound, Refused
from data.records import Person

PASSWORD = "a quiet night"


@pytest.fixture
def ada(db: Database) -> Person:
    return people.add(db, "Ada", role="rater", password_hash=accounts.hash_password(PASSWORD))


def sign_in(db: Database, name: str, password: str, throttle: Throttle | None = None) -> str:
    return accounts.sign_in(db, throttle or Throttle(), name, password, "127.0.0.1")


def test_the_right_password_opens_a_session_for_that_person(db: Database, ada: Person) -> None:
    token = sign_in(db, " ada ", PASSWORD)
    assert accounts.person_of(db, token) == ada


@pytest.mark.parametrize(
    "name, password", [("Ada", "wrong"), ("Ada", ""), ("Eve", PASSWORD), ("\0", PASSWORD)]
)
def test_a_wrong_name_and_a_wrong_password_read_the_same(
    db: Database, ada: Person, name: str, password: str
) -> None:
    with pytest.raises(WrongPassword, match="Name or password is wrong"):
        sign_in(db, name, password)


def test_a_person_without_a_password_cannot_sign_in(db: Database) -> None:
    people.add(db, "Ben")
    with pytest.raises(WrongPassword):
        sign_in(db, "Ben", "")


def test_a_disabled_person_loses_the_session_and_cannot_sign_in(db: Database, ada: Person) -> None:
    token = sign_in(db, "Ada", PASSWORD)
    people.set_disabled(db, ada.id, True)
    assert accounts.person_of(db, token) is None
    with pytest.raises(WrongPassword):
        sign_in(db, "Ada", PASSWORD)


@pytest.mark.parametrize("token", [None, "", "made-up", "\udc80", "x" * 100_000])
def test_a_made_up_cookie_is_nobody(db: Database, token: str | None) -> None:
    assert accounts.person_of(db, token) is None


def test_the_database_holds_neither_password_nor_token(db: Database, ada: Person) -> None:
    token = sign_in(db, "Ada", PASSWORD)
    link = accounts.make_password_link(db, ada)
    stored = db.path.read_bytes() + db.path.with_name(db.path.name + "-wal").read_bytes()
    assert not any(secret.encode() in stored for secret in (PASSWORD, token, link))


@pytest.mark.parametrize("password", ["short", "x" * 1025, "with\0null byte", "lone \ud800 surrogate"])
def test_a_password_that_keeps_nobody_out_is_refused(password: str) -> None:
    with pytest.raises(Refused, match="password"):
        accounts.hash_password(password)


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "line\nbreak", "right‮left"])
def test_a_name_nobody_could_type_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="not a name"):
        accounts.check_name(name)


def test_changing_the_password_ends_every_session(db: Database, ada: Person) -> None:
    token = sign_in(db, "Ada", PASSWORD)
    accounts.change_password(db, Throttle(), ada, PASSWORD, "another night", "here")
    assert accounts.person_of(db, token) is None
    assert accounts.person_of(db, sign_in(db, "Ada", "another night")) == ada


def test_changing_the_password_needs_the_present_one(db: Database, ada: Person) -> None:
    with pytest.raises(WrongPassword):
        accounts.change_password(db, Throttle(), ada, "guessed it", "another night", "here")
    assert sign_in(db, "Ada", PASSWORD)


def test_guesses_on_the_account_page_and_at_sign_in_are_counted_together(db: Database, ada: Person) -> None:
    throttle = Throttle(limit=2)
    with pytest.raises(WrongPassword):
        sign_in(db, "ADA", "wrong", throttle)
    with pytest.raises(WrongPassword):
        accounts.change_password(db, throttle, ada, "guessed it", "another night", "127.0.0.1")
    with pytest.raises(TooManyAttempts):
        accounts.change_password(db, throttle, ada, PASSWORD, "another night", "127.0.0.1")


def test_wrong_passwords_from_elsewhere_keep_nobody_out_but_a_crowd_of_them_does(
    db: Database, ada: Person
) -> None:
    throttle = Throttle(limit=1)
    for stranger in range(9):
        with pytest.raises(WrongPassword):
            accounts.sign_in(db, throttle, "Ada", "wrong", f"10.0.0.{stranger}")
        with pytest.raises(TooManyAttempts):
            accounts.sign_in(db, throttle, "Ada", PASSWORD, f"10.0.0.{stranger}")
    assert sign_in(db, "Ada", PASSWORD, throttle)
    with pytest.raises(WrongPassword):
        accounts.sign_in(db, throttle, "ada", "wrong", "10.0.0.10")
    with pytest.raises(TooManyAttempts):
        sign_in(db, "Ada", PASSWORD, throttle)


def test_a_new_password_that_is_too_short_is_no_wrong_one(db: Database, ada: Person) -> None:
    throttle = Throttle(limit=1)
    with pytest.raises(Refused, match="too short"):
        accounts.change_password(db, throttle, ada, PASSWORD, "short", "here")
    accounts.change_password(db, throttle, ada, PASSWORD, "another night", "here")


def test_the_operator_link_makes_one_operator_once(db: Database) -> None:
    link = accounts.make_operator_link(db)
    assert link
    person = accounts.use_operator_link(db, link, "Grace", PASSWORD)
    assert person.role == "operator"
    with pytest.raises(Refused, match="used or has expired"):
        accounts.use_operator_link(db, link, "Mallory", PASSWORD)
    assert accounts.make_operator_link(db) is None


def test_an_older_operator_link_dies_when_there_is_an_operator(db: Database) -> None:
    first, second = accounts.make_operator_link(db), accounts.make_operator_link(db)
    assert first and second
    accounts.use_operator_link(db, second, "Grace", PASSWORD)
    with pytest.raises(Refused):
        accounts.use_operator_link(db, first, "Mallory", PASSWORD)


def test_a_bad_password_does_not_use_the_link_up(db: Database) -> None:
    link = accounts.make_operator_link(db)
    assert link
    with pytest.raises(Refused, match="password"):
        accounts.use_operator_link(db, link, "Grace", "short")
    assert accounts.use_operator_link(db, link, "Grace", PASSWORD)


def test_an_operator_link_expires_after_a_day(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    link, later = accounts.make_operator_link(db), time.time() + accounts.LINK_SECONDS + 1
    assert link
    monkeypatch.setattr("chatbot.accounts.time.time", lambda: later)
    with pytest.raises(Refused, match="expired"):
        accounts.use_operator_link(db, link, "Grace", PASSWORD)


def test_a_session_expires_after_thirty_days(
    db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, later = sign_in(db, "Ada", PASSWORD), time.time() + accounts.SESSION_SECONDS + 1
    monkeypatch.setattr("chatbot.accounts.time.time", lambda: later)
    assert accounts.person_of(db, token) is None


def test_a_password_link_sets_one_persons_password_once(db: Database, ada: Person) -> None:
    link = accounts.make_password_link(db, ada)
    assert accounts.use_password_link(db, link, "a new password") == ada
    assert sign_in(db, "Ada", "a new password")
    with pytest.raises(Refused, match="used or has expired"):
        accounts.use_password_link(db, link, "and another")


def test_a_changed_password_ends_the_links_that_were_made_before(db: Database, ada: Person) -> None:
    first, second = accounts.make_password_link(db, ada), accounts.make_password_link(db, ada)
    accounts.use_password_link(db, second, "a new password")
    third = accounts.make_password_link(db, ada)
    accounts.change_password(db, Throttle(), ada, "a new password", "another night", "here")
    for link in (first, third):
        with pytest.raises(Refused, match="used or has expired"):
            accounts.use_password_link(db, link, "a stolen night")
    assert sign_in(db, "Ada", "another night")


def test_the_last_operator_who_can_sign_in_stays_one(db: Database, ada: Person) -> None:
    boss = people.add(db, "Boss", role="operator")
    people.set_password(db, boss.id, "hash")
    people.set_disabled(db, people.add(db, "Away", role="operator", password_hash="hash").id, True)
    people.add(db, "Never came", role="operator")
    with pytest.raises(Refused, match="Without Boss there is no operator with a password - make somebody"):
        accounts.change_role(db, boss, "rater", "command line")
    with pytest.raises(Refused, match="Without Boss there is no operator with a password - make somebody"):
        accounts.disable(db, boss, "command line")
    assert people.get(db, boss.id) == boss and audit.entries(db) == []
    assert accounts.make_operator_link(db) is None, "whoever never came has a link already"
    accounts.change_role(db, boss, "operator", "command line")
    accounts.change_role(db, ada, "operator", "command line")
    accounts.change_role(db, boss, "user", "command line")
    assert people.get(db, boss.id).role == "user"


def test_an_operator_without_a_password_is_missed_only_where_no_other_operator_is_left(db: Database) -> None:
    one, other, third = (people.add(db, name, role="operator") for name in ("One", "Other", "Third"))
    accounts.change_role(db, one, "rater", "command line")
    accounts.disable(db, other, "command line")
    with pytest.raises(Refused, match="Without Third there is no operator"):
        accounts.disable(db, third, "command line")
    assert [person for person in people.list_all(db) if accounts.may(person, "operator")] == [third]


def test_a_password_link_fits_no_other_person_and_makes_no_operator(db: Database, ada: Person) -> None:
    boss = people.add(db, "Boss", role="operator")
    secret = accounts.make_password_link(db, ada).partition(".")[2]
    with pytest.raises(Refused):
        accounts.use_password_link(db, f"{boss.id}.{secret}", PASSWORD)
    people.set_disabled(db, boss.id, True)
    with pytest.raises(Refused):
        accounts.use_operator_link(db, accounts.make_password_link(db, boss), "Mallory", PASSWORD)


def test_half_a_link_is_named_as_such(db: Database) -> None:
    with pytest.raises(NotFound, match="not complete"):
        accounts.use_password_link(db, "nobody", PASSWORD)


def test_the_eleventh_wrong_password_in_a_minute_is_turned_away(
    db: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.throttle.time", SimpleNamespace(monotonic=lambda: 100.0))
    throttle = Throttle()
    for _ in range(10):
        with pytest.raises(WrongPassword):
            sign_in(db, "Ada", "wrong", throttle)
    with pytest.raises(TooManyAttempts) as refusal:
        sign_in(db, "Ada", PASSWORD, throttle)
    assert refusal.value.retry_after == 60


def test_many_guesses_at_once_are_not_more_guesses(db: Database, ada: Person) -> None:
    throttle, outcomes = Throttle(limit=3), []

    def guess() -> None:
        try:
            sign_in(db, "Ada", "wrong", throttle)
        except Refused:
            outcomes.append("wrong")
        except TooManyAttempts:
            outcomes.append("turned away")

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("wrong"), outcomes.count("turned away")) == (3, 5)
