"""People, and how they are recognised: sessions, one-time links.

Only hashes of passwords and tokens are stored; who may do what is decided where a request comes in.
"""

import time
import unicodedata
from typing import get_args

from data.database import Database, Row, new_id
from data.errors import NotFound, Refused
from data.records import Person, PersonKind, PersonRole
from data.text import clean

_COLUMNS = "people.id, people.name, people.role, people.kind, people.is_disabled, people.created_at"


def _person(row: Row) -> Person:
    return Person(
        row["id"], row["name"], row["role"], row["kind"], bool(row["is_disabled"]), row["created_at"]
    )


def add(
    db: Database,
    name: str,
    role: PersonRole = "user",
    password_hash: str | None = None,
    kind: PersonKind = "human",
) -> Person:
    """A new person; Refused if the name is taken (case does not count), empty, too long or unprintable."""
    name = clean(name).strip()
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise Refused(f"The name {name[:80]!r} cannot be used - use 1 to 64 printable characters.")
    _check_role(role)
    with db.write() as conn:
        if _namesakes(db, name):
            raise Refused(f"The name {name!r} is taken - choose another.")
        person = Person(new_id(), name, role, kind, False, time.time())
        conn.execute(
            "INSERT INTO people (id, name, role, kind, password_hash, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            (person.id, name, role, kind, password_hash, person.created_at),
        )
    return person


def get(db: Database, id: str) -> Person:
    """The person with this id, else NotFound."""
    row = db.one(f"SELECT {_COLUMNS} FROM people WHERE id = ?", (clean(id),))
    if row is None:
        raise NotFound(f'No person has the id {id!r} - run "chatbot person list" to see who there is.')
    return _person(row)


def by_name(db: Database, name: str) -> Person | None:
    """The person of this name, whatever its case and however its accents are encoded.

    Where the names of two differ in nothing else, as was possible once, each has to be spelled as it is.
    """
    found = _namesakes(db, name)
    same = [row for row in found if row["is_same"]] or found
    return _person(same[0]) if len(same) == 1 else None


def _namesakes(db: Database, name: str) -> list[Row]:
    """Everybody of this name; `is_same` is 1 where SQLite says so too, to which only ASCII has a case."""
    name = clean(name).strip()
    rows = db.query(
        f"SELECT {_COLUMNS}, name = ? AS is_same FROM people"
        " WHERE name IN (?, ?) OR length(CAST(name AS BLOB)) > length(name)",  # or one that is not ASCII
        (name, name, unicodedata.normalize("NFC", name)),
    )
    return [row for row in rows if row["is_same"] or _folded(row["name"]) == _folded(name)]


def _folded(name: str) -> str:
    # Not casefold(): wrong passwords are counted for each lower-case name, and guesses at "Weiß" are not
    # to be had once more as guesses at "Weiss".
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())


def list_all(db: Database) -> list[Person]:
    """Everybody, in the order they came."""
    return [_person(row) for row in db.query(f"SELECT {_COLUMNS} FROM people ORDER BY id")]


def count(db: Database, kind: PersonKind = "human") -> int:
    """How many people of this kind there are."""
    row = db.one("SELECT count(*) AS n FROM people WHERE kind = ?", (kind,))
    return int(row["n"]) if row else 0


def password_hash(db: Database, id: str) -> str | None:
    """The stored hash; None for somebody without a password."""
    row = db.one("SELECT password_hash FROM people WHERE id = ?", (clean(id),))
    return row["password_hash"] if row else None


def set_password(db: Database, id: str, hash: str) -> None:
    """Stores another password hash."""
    _update(db, id, "password_hash", hash)


def set_role(db: Database, id: str, role: PersonRole) -> None:
    """Gives another role."""
    _check_role(role)
    _update(db, id, "role", role)


def set_disabled(db: Database, id: str, is_disabled: bool) -> None:
    """Shuts a person out (and ends their sessions), or lets them in again."""
    with db.write():
        _update(db, id, "is_disabled", int(is_disabled))
        if is_disabled:
            close_sessions(db, id)


def _check_role(role: str) -> None:
    if role not in get_args(PersonRole):
        raise Refused(f"There is no role {role!r} - use one of {', '.join(get_args(PersonRole))}.")


def _update(db: Database, id: str, column: str, value: str | int) -> None:
    with db.write() as conn:
        get(db, id)
        conn.execute(f"UPDATE people SET {column} = ? WHERE id = ?", (value, id))


def open_session(db: Database, person_id: str, token_hash: str, expires_at: float) -> None:
    """Remembers a signed-in browser by the hash of its cookie; expired sessions are cleared away."""
    with db.write() as conn:
        get(db, person_id)
        conn.execute("DELETE FROM sessions WHERE expires_at <= ?", (time.time(),))
        conn.execute(
            "INSERT INTO sessions (token_hash, person_id, expires_at, created_at) VALUES (?, ?, ?, ?)",
            (token_hash, person_id, expires_at, time.time()),
        )


def session_person(db: Database, token_hash: str, now: float) -> Person | None:
    """Whose session this is; None if it is unknown or expired, or the person is disabled."""
    row = db.one(
        f"SELECT {_COLUMNS} FROM sessions JOIN people ON people.id = sessions.person_id"
        " WHERE token_hash = ? AND expires_at > ? AND NOT is_disabled",
        (clean(token_hash), now),
    )
    return _person(row) if row else None


def close_session(db: Database, token_hash: str) -> None:
    """Ends one session, if it is there."""
    with db.write() as conn:
        conn.execute("DELETE FROM sessions WHERE token_hash = ?", (clean(token_hash),))


def close_sessions(db: Database, person_id: str) -> None:
    """Ends every session of a person."""
    with db.write() as conn:
        conn.execute("DELETE FROM sessions WHERE person_id = ?", (clean(person_id),))


def add_link(db: Database, token_hash: str, role: PersonRole, expires_at: float) -> None:
    """Stores a one-time link by the hash of its token; `use_link` gives its role to whoever uses it first."""
    _check_role(role)
    with db.write() as conn:
        conn.execute(
            "INSERT INTO sign_in_links (token_hash, role, expires_at) VALUES (?, ?, ?)",
            (token_hash, role, expires_at),
        )


def use_link(db: Database, token_hash: str, now: float) -> PersonRole | None:
    """The role the link gives, once; None if it is unknown, used or expired."""
    with db.write() as conn:
        row = db.one(
            "SELECT role FROM sign_in_links WHERE token_hash = ? AND used_at IS NULL AND expires_at > ?",
            (clean(token_hash), now),
        )
        if row is None:
            return None
        conn.execute("UPDATE sign_in_links SET used_at = ? WHERE token_hash = ?", (now, clean(token_hash)))
    role: PersonRole = row["role"]
    return role
