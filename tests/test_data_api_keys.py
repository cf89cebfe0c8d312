"""API keys at rest: hashes only, noted uses, and that they go when they are revoked or their person goes."""

import hashlib
import time

import pytest

from data import api_keys, audit, database, people
from data.database import Database, connect
from data.errors import NotFound, Refused
from data.forgetting import forget
from data.home import Home
from data.records import Person
from tests.stories import somebody


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def a_key(db: Database, person: Person, secret: str = "ns-secret", label: str = "") -> api_keys.ApiKey:
    return api_keys.add(db, person, hash_of(secret), secret[:8], label)


def test_a_key_is_found_by_its_hash_with_its_person(db: Database) -> None:
    ada = somebody(db)
    key = a_key(db, ada, label=" My editor ")
    assert api_keys.find(db, hash_of("ns-secret")) == (key, ada)
    assert (key.label, key.prefix, key.last_used_at, key.is_revoked) == ("My editor", "ns-secre", None, False)
    assert api_keys.find(db, hash_of("ns-other")) is None
    assert api_keys.get(db, key.id) == key


def test_a_key_of_somebody_disabled_opens_nothing_until_they_are_back(db: Database) -> None:
    ada = somebody(db)
    a_key(db, ada)
    people.set_disabled(db, ada.id, True)
    assert api_keys.find(db, hash_of("ns-secret")) is None
    people.set_disabled(db, ada.id, False)
    assert api_keys.find(db, hash_of("ns-secret"))


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(db: Database) -> None:
    ada = somebody(db)
    key = a_key(db, ada)
    api_keys.revoke(db, key, "ada")
    api_keys.revoke(db, key, "ada")
    assert api_keys.find(db, hash_of("ns-secret")) is None
    (listed,) = api_keys.list_for(db, ada.id)
    assert listed.revoked_at is not None and listed.revoked_at <= time.time()
    assert [entry.action for entry in audit.entries(db)] == ["revoke api key", "make api key"]


def test_the_newest_key_is_listed_first_and_nobody_elses(db: Database) -> None:
    ada, eve = somebody(db, "ada"), somebody(db, "eve")
    keys = [a_key(db, ada, f"ns-{i}") for i in range(3)]
    a_key(db, eve)
    assert api_keys.list_for(db, ada.id) == keys[::-1]


def test_a_use_is_noted_at_most_once_a_minute(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, now = somebody(db), time.time()
    key = a_key(db, ada)
    for moment, noted in ((now, now), (now + 59, now), (now + 61, now + 61)):
        monkeypatch.setattr("data.api_keys.time.time", lambda moment=moment: moment)
        api_keys.note_use(db, key)
        key = api_keys.get(db, key.id)
        assert key.last_used_at == noted


def test_a_use_is_not_noted_while_another_process_writes_and_nobody_waits_for_that(db: Database) -> None:
    key = a_key(db, somebody(db))
    other = connect(db.path)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    api_keys.note_use(db, key)
    assert time.monotonic() - started < database.BUSY_SECONDS / 2
    assert api_keys.get(db, key.id).last_used_at is None
    other.execute("ROLLBACK")
    other.close()
    api_keys.note_use(db, key)
    assert api_keys.get(db, key.id).last_used_at is not None


def test_a_person_has_so_many_keys_and_no_more_until_one_is_revoked(db: Database) -> None:
    ada = somebody(db)
    keys = [a_key(db, ada, f"ns-{i}") for i in range(api_keys.MOST_KEYS)]
    with pytest.raises(Refused, match="ada has 20 API keys already - revoke one first"):
        a_key(db, ada, "ns-more")
    api_keys.revoke(db, keys[0], "ada")
    assert a_key(db, ada, "ns-more")


@pytest.mark.parametrize("label", ["x" * 65, "line\nbreak", "right\u202eleft"])
def test_a_label_nobody_could_read_is_refused(db: Database, label: str) -> None:
    with pytest.raises(Refused, match="cannot be used"):
        a_key(db, somebody(db), label=label)


def test_an_unknown_key_is_a_sentence(db: Database) -> None:
    with pytest.raises(NotFound, match="No API key has the id 'x' - run"):
        api_keys.get(db, "x")


def test_keys_go_with_their_person_and_leave_nothing_in_the_file(db: Database, home: Home) -> None:
    ada, eve = somebody(db, "ada"), somebody(db, "eve")
    key = a_key(db, ada, label="canary-label-9d1")
    kept = a_key(db, eve, "ns-eve")
    forget(db, home, ada)
    assert api_keys.find(db, hash_of("ns-secret")) is None
    assert api_keys.list_for(db, eve.id) == [kept]
    db.close()
    for words in (key.label, hash_of("ns-secret")):
        assert words.encode() not in home.database.read_bytes()
