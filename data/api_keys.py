"""API keys: with one, a program speaks for the person whose key it is.

Only a key's sha256 is stored, and its first letters, by which its owner recognises it. A revoked key stays as
a row, so that the list still tells what it was for and when it was last used; keys go with their person.
"""

import time
from contextlib import suppress
from dataclasses import dataclass

from data import audit, people
from data.database import Database, Row, new_id
from data.errors import Busy, NotFound, Refused
from data.records import Person
from data.text import clean

MOST_KEYS = 20
"""Of one person at a time."""
LONGEST_LABEL = 64
USE_NOTED_EVERY = 60.0
"""Seconds: a busy key costs one write a minute, not one a request."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as its person sees it."""

    id: str
    person_id: str
    prefix: str
    """Its first letters."""
    label: str
    """What it is for, in its person's words."""
    created_at: float
    last_used_at: float | None
    """To the minute."""
    revoked_at: float | None

    @property
    def is_revoked(self) -> bool:
        return self.revoked_at is not None


_COLUMNS = ", ".join(ApiKey.__dataclass_fields__)


def add(db: Database, person: Person, key_hash: str, prefix: str, label: str = "") -> ApiKey:
    """Remembers a new key of this person; Refused where they have too many, or the label is no label."""
    label = clean(label).strip()
    if len(label) > LONGEST_LABEL or not label.isprintable():
        raise Refused(f"The label {label[:80]!r} cannot be used - use up to {LONGEST_LABEL} characters.")
    with db.write() as conn:
        people.get(db, person.id)
        if sum(not key.is_revoked for key in list_for(db, person.id)) >= MOST_KEYS:
            raise Refused(f"{person.name} has {MOST_KEYS} API keys already - revoke one first.")
        id, now = new_id(), time.time()
        conn.execute(
            "INSERT INTO api_keys (id, person_id, key_hash, prefix, label, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (id, person.id, key_hash, prefix, label, now),
        )
        audit.record(db, person.name, "make api key", {"key": id})
    return ApiKey(id, person.id, prefix, label, now, None, None)


def get(db: Database, id: str) -> ApiKey:
    """The key with this id, else NotFound."""
    row = db.one(f"SELECT {_COLUMNS} FROM api_keys WHERE id = ?", (clean(id),))
    if row is None:
        raise NotFound(f'No API key has the id {id!r} - run "chatbot key list" to see which there are.')
    return _key(row)


def list_for(db: Database, person_id: str) -> list[ApiKey]:
    """A person's keys, the revoked ones too, newest first."""
    rows = db.query(
        f"SELECT {_COLUMNS} FROM api_keys WHERE person_id = ? ORDER BY id DESC", (clean(person_id),)
    )
    return [_key(row) for row in rows]


def find(db: Database, key_hash: str) -> tuple[ApiKey, Person] | None:
    """The key that has this hash and its person; None where it is unknown, revoked, or they are disabled."""
    row = db.one(
        f"SELECT {_COLUMNS} FROM api_keys WHERE key_hash = ? AND revoked_at IS NULL", (clean(key_hash),)
    )
    if row is None:
        return None
    person = people.get(db, row["person_id"])
    return None if person.is_disabled else (_key(row), person)


def note_use(db: Database, key: ApiKey) -> None:
    """Writes down that the key is used now, where that was not noted a moment ago and nobody else writes."""
    now = time.time()
    if key.last_used_at is None or now - key.last_used_at >= USE_NOTED_EVERY:
        with suppress(Busy), db.write(patience=0.0) as conn:
            conn.execute("UPDATE api_keys SET last_used_at = ? WHERE id = ?", (now, key.id))


def revoke(db: Database, key: ApiKey, actor: str) -> None:
    """The key opens nothing any more, from the next request on. Revoking twice is harmless."""
    with db.write() as conn:
        done = conn.execute(
            "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (time.time(), key.id)
        )
        if done.rowcount:
            audit.record(db, actor, "revoke api key", {"key": key.id})


def _key(row: Row) -> ApiKey:
    return ApiKey(**{name: row[name] for name in ApiKey.__dataclass_fields__})
