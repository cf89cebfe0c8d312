"""people.py: who there is, how they are recognised, what operators did."""

import pytest

from data import people
from data.database import Database
from data.errors import NotFound, Refused


def test_a_person_is_found_by_id_and_by_name_whatever_its_case(db: Database) -> None:
    ada = people.add(db, "  Ada ", role="rater", password_hash="hash")
    assert (ada.name, ada.role, ada.kind, ada.is_disabled) == ("Ada", "rater", "human", False)
    assert people.get(db, ada.id) == ada
    assert people.by_name(db, "ADA") == ada
    assert people.by_name(db, "bob") is None
    assert people.password_hash(db, ada.id) == "hash"


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\nb", "a\0b\x1b[31m"])
def test_a_name_that_cannot_be_read_aloud_is_refused(db: Database, name: str) -> None:
    with pytest.raises(Refused, match="1 to 64 printable characters"):
        people.add(db, name)


def test_a_taken_name_is_refused(db: Database) -> None:
    people.add(db, "ada")
    with pytest.raises(Refused, match="'ADA' is taken"):
        people.add(db, "ADA")


SPELLINGS = ("Émile", "émile", "ÉMILE", "E\u0301mile", " e\u0301MILE ")


@pytest.mark.parametrize("first", SPELLINGS)
def test_case_and_encoding_do_not_count_beyond_ascii_either(db: Database, first: str) -> None:
    emile = people.add(db, first)
    people.add(db, "Emile")
    people.add(db, "Zoé")
    for other in SPELLINGS:
        assert people.by_name(db, other) == emile
        with pytest.raises(Refused, match="is taken - choose another"):
            people.add(db, other)
    assert people.by_name(db, "emile") != emile and people.by_name(db, "émil") is None


def test_a_sign_that_ascii_has_too_is_the_same_name(db: Database) -> None:
    kelvin = people.add(db, "kelvin")
    assert people.by_name(db, "\u212aelvin") == kelvin  # the sign of the unit


def test_two_whom_only_case_told_apart_once_keep_their_names(db: Database) -> None:
    for id, name in enumerate(("Émile", "émile")):
        with db.write() as conn:
            conn.execute("INSERT INTO people VALUES (?, ?, 'user', 'human', NULL, 0, 0)", (str(id), name))
    found = [people.by_name(db, name) for name in ("Émile", "émile", "ÉMILE", "E\u0301mile")]
    assert [person and person.id for person in found] == ["0", "1", "0", None]
    with pytest.raises(Refused, match="is taken"):
        people.add(db, "e\u0301mile")


def test_an_unknown_role_or_person_is_a_sentence(db: Database) -> None:
    with pytest.raises(Refused, match="no role 'king' - use one of user, rater, operator"):
        people.add(db, "ada", role="king")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="No person has the id 'x'"):
        people.set_password(db, "x", "hash")


def test_people_are_counted_by_kind(db: Database) -> None:
    people.add(db, "ada")
    people.add(db, "machine", kind="simulated")
    assert people.count(db) == 1
    assert people.count(db, "simulated") == 1
    assert [person.name for person in people.list_all(db)] == ["ada", "machine"]


def test_role_and_password_can_change(db: Database) -> None:
    ada = people.add(db, "ada")
    people.set_role(db, ada.id, "operator")
    people.set_password(db, ada.id, "new")
    assert people.get(db, ada.id).role == "operator"
    assert people.password_hash(db, ada.id) == "new"


def test_a_session_lives_until_it_expires_or_is_closed(db: Database) -> None:
    ada = people.add(db, "ada")
    people.open_session(db, ada.id, "token", expires_at=4e9)
    assert people.session_person(db, "token", now=3e9) == ada
    assert people.session_person(db, "token", now=4e9) is None
    assert people.session_person(db, "other", now=3e9) is None
    people.close_session(db, "token")
    assert people.session_person(db, "token", now=3e9) is None


def test_somebody_disabled_is_signed_out_for_good(db: Database) -> None:
    ada = people.add(db, "ada")
    people.open_session(db, ada.id, "token", expires_at=4e9)
    people.set_disabled(db, ada.id, True)
    assert people.session_person(db, "token", now=3e9) is None
    people.set_disabled(db, ada.id, False)
    assert people.session_person(db, "token", now=3e9) is None
    assert not people.get(db, ada.id).is_disabled


def test_a_link_works_once_and_in_time(db: Database) -> None:
    people.add_link(db, "link", "operator", expires_at=100)
    people.add_link(db, "late", "operator", expires_at=100)
    assert people.use_link(db, "link", now=99) == "operator"
    assert people.use_link(db, "link", now=99) is None
    assert people.use_link(db, "late", now=100) is None
    assert people.use_link(db, "forged", now=1) is None
