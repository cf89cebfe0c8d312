"""Who is there and what they may do: passwords, sessions, one-time links, roles and API keys.

The database holds only hashes: argon2 of passwords, sha256 of the random tokens in cookies and links. Nobody
can sign up alone and there is no default password: the terminal prints the first operator's link, and
operators make everybody else (`chatbot person add`). Left out on purpose: e-mail and third-party logins.
"""

import hashlib
import secrets
import threading
import time
import unicodedata
from functools import cache
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from chatbot.throttle import Throttle
from data import api_keys, audit, people
from data.api_keys import ApiKey
from data.database import Database
from data.errors import NotFound, Refused
from data.records import Person, PersonRole

COOKIE = "nightschool_session"
SESSION_SECONDS = 30 * 24 * 3600
LINK_SECONDS = 24 * 3600
RANKS: dict[PersonRole, int] = {"user": 0, "rater": 1, "operator": 2}

KEY_MARK = "ns-"
"""How an API key begins, so that people and scanners of code know one when they see it."""
_KEY_SHOWN = 8

_hasher = PasswordHasher()
# A hash costs 64 MB and some 50 ms of CPU on purpose; a burst of logins must not take the machine.
_hashing = threading.BoundedSemaphore(2)


class WrongPassword(Refused):
    """Name and password do not belong together; which of the two is wrong is not said."""


class SignedOut(Refused):
    """Nobody is signed in."""


# Passwords


def check_name(name: str) -> str:
    """The name as it is stored: trimmed and in composed form. Raises Refused."""
    name = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(name) <= 64 or any(unicodedata.category(letter).startswith("C") for letter in name):
        raise Refused("That is not a name - use 1 to 64 characters that can be seen.")
    return name


def check_password(password: str) -> None:
    """Raises Refused when it is too short to keep anybody out, or too long to be typed."""
    if not 8 <= len(password) <= 1024:
        raise Refused("The password is too short or too long - use 8 to 1024 characters.")
    if not password.isprintable():
        raise Refused(
            "The password has characters that cannot be typed - use letters, digits, signs and spaces."
        )


def hash_password(password: str) -> str:
    check_password(password)
    with _hashing:
        return _hasher.hash(unicodedata.normalize("NFC", password))


def is_password(stored: str | None, password: str) -> bool:
    """Whether `password` made the hash `stored`; takes as long when there is none, to give no names away."""
    with _hashing:
        try:
            return _hasher.verify(stored or _nobody(), unicodedata.normalize("NFC", password)[:1024])
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False


@cache
def _nobody() -> str:
    return _hasher.hash(secrets.token_urlsafe())


def _who(name: str, address: str) -> tuple[str, str]:
    """As whom the throttle knows somebody who types a password."""
    return f"name:{name.lower()}", f"address:{address}"


def change_password(
    db: Database, throttle: Throttle, person: Person, old: str, new: str, address: str
) -> None:
    """Let a person replace their password; all their sessions end, API keys stay.

    Raises WrongPassword, TooManyAttempts (a stolen cookie must not help to guess the password) or Refused.
    """
    check_password(new)
    confirm_password(db, throttle, person, old, address)
    hashed = hash_password(new)
    with db.write():
        people.set_password(db, person.id, hashed)
        people.close_sessions(db, person.id)
        audit.record(db, person.name, "change password", {})


def confirm_password(db: Database, throttle: Throttle, person: Person, password: str, address: str) -> None:
    """Who is signed in types the password once more. Raises WrongPassword or TooManyAttempts."""
    with throttle.attempt(*_who(person.name, address)):
        if not is_password(people.password_hash(db, person.id), password):
            raise WrongPassword("The present password is wrong - type it again.")


# Sessions


def digest(token: str) -> str:
    """What the database keeps of a token, or of an API key."""
    return hashlib.sha256(token.encode()).hexdigest()


def open_session(db: Database, person: Person) -> str:
    """A new cookie token for this person, good for 30 days."""
    token = secrets.token_urlsafe(32)
    people.open_session(db, person.id, digest(token), time.time() + SESSION_SECONDS)
    return token


def person_of(db: Database, token: str | None) -> Person | None:
    """Who carries this cookie, if the session is alive and the person not disabled."""
    if not token or len(token) > 200 or not token.isascii():
        return None
    return people.session_person(db, digest(token), time.time())


def sign_in(db: Database, throttle: Throttle, name: str, password: str, address: str) -> str:
    """The cookie token of a new session. Raises WrongPassword or TooManyAttempts."""
    name = unicodedata.normalize("NFC", name).strip()[:64]
    with throttle.attempt(*_who(name, address)):
        person = people.by_name(db, name)
        stored = people.password_hash(db, person.id) if person else None
        if not is_password(stored, password) or person is None or stored is None or person.is_disabled:
            raise WrongPassword("Name or password is wrong - try again, or ask an operator for a new link.")
    return open_session(db, person)


def sign_out_everywhere(db: Database, person: Person, actor: str) -> None:
    """End every session of a person and revoke all their API keys: nothing that was stolen opens anything."""
    with db.write():
        people.close_sessions(db, person.id)
        for key in api_keys.list_for(db, person.id):
            api_keys.revoke(db, key, actor)


def may(person: Person | None, role: PersonRole) -> bool:
    """Whether the person is there, enabled, and has at least this role."""
    return person is not None and not person.is_disabled and RANKS[person.role] >= RANKS[role]


def require(request: Any, role: PersonRole = "user") -> Person:
    """The person behind a request that passed the guard. Raises SignedOut or Refused.

    request: anything with an ASGI `scope`, so that routes, mounts and tests ask in the same way.
    """
    person: Person | None = request.scope.get("person")
    if person is None:
        raise SignedOut("You are not signed in - sign in first.")
    if not may(person, role):
        raise Refused(f"This needs the role {role!r} - ask an operator.")
    return person


def change_role(db: Database, person: Person, role: PersonRole, actor: str) -> None:
    """Let a person do more, or less. Raises Refused where nobody would be left to operate."""
    with db.write():
        people.set_role(db, person.id, role)
        check_still_operated(db, person, people.password_hash(db, person.id))
        audit.record(db, actor, "person role", {"name": person.name, "role": role, "before": person.role})


def disable(db: Database, person: Person, actor: str) -> None:
    """Shut a person out; their sessions end. Raises Refused where nobody would be left to operate."""
    with db.write():
        people.set_disabled(db, person.id, True)
        check_still_operated(db, person, people.password_hash(db, person.id))
        audit.record(db, actor, "person disable", {"name": person.name})


def check_still_operated(db: Database, before: Person, stored: str | None) -> None:
    """Raises Refused where a person was the last operator, or the last one with a password, of which `stored`
    was the hash; within the write that changes them.

    Whoever never set a password cannot operate, and their link may be lost or too old.
    """
    left = _operators(db)
    is_operated = any(people.password_hash(db, person.id) for person in left)
    if may(before, "operator") and (not left or (stored and not is_operated)):
        raise Refused(
            f"Without {before.name} there is no operator with a password - make somebody else one, who sets "
            "a password, first."
        )


# One-time links


def has_operator(db: Database) -> bool:
    return bool(_operators(db))


def _operators(db: Database) -> list[Person]:
    return [person for person in people.list_all(db) if may(person, "operator") and person.kind == "human"]


def make_operator_link(db: Database) -> str | None:
    """The token of a one-time link that makes the first operator; None once there is one."""
    if has_operator(db):
        return None
    token = secrets.token_urlsafe(24)
    people.add_link(db, digest(f"operator:{token}"), "operator", time.time() + LINK_SECONDS)
    return token


def use_operator_link(db: Database, token: str, name: str, password: str) -> Person:
    """Make the first operator, with the token that the terminal printed. Raises Refused."""
    name, hashed = check_name(name), hash_password(password)
    with db.write():
        role = None if has_operator(db) else people.use_link(db, digest(f"operator:{token}"), time.time())
        if role != "operator":
            raise Refused("This link was used or has expired - restart the server to get a new one.")
        person = people.add(db, name, role="operator", password_hash=hashed)
        audit.record(db, person.name, "first operator", {})
    return person


def make_password_link(db: Database, person: Person) -> str:
    """The token of a one-time link with which this person sets a password; good until they have another."""
    token = f"{person.id}.{secrets.token_urlsafe(24)}"
    people.add_link(db, _link_digest(db, person, token), person.role, time.time() + LINK_SECONDS)
    return token


def _link_digest(db: Database, person: Person, token: str) -> str:
    """What is stored of a password link: it fits the present password only, so that a change ends it."""
    return digest(f"password:{token}:{people.password_hash(db, person.id)}")


def person_of_link(db: Database, token: str) -> Person:
    """Whom a password link names; whether it is good shows when it is used. Raises NotFound."""
    try:
        return people.get(db, token.partition(".")[0])
    except NotFound:
        raise NotFound(
            "This link is not complete - copy all of it, or ask an operator for a new one."
        ) from None


def use_password_link(db: Database, token: str, password: str) -> Person:
    """Set the password of the person whose link this is; their sessions end. Raises Refused."""
    person, hashed = person_of_link(db, token), hash_password(password)
    with db.write():
        role = people.use_link(db, _link_digest(db, person, token), time.time())
        if role is None or person.is_disabled:
            raise Refused("This link was used or has expired - ask an operator for a new one.")
        people.set_password(db, person.id, hashed)
        people.close_sessions(db, person.id)
        audit.record(db, person.name, "set password", {})
    return person


# API keys


def make_key(db: Database, person: Person, label: str = "") -> tuple[str, ApiKey]:
    """A new key of this person, shown once, and what is remembered of it. Raises Refused.

    Whoever carries it counts as its owner, with their role, at /v1 and nowhere else: a key opens no page, and
    a cookie opens nothing below /v1, so no other site can act for anybody there.
    """
    key = KEY_MARK + secrets.token_urlsafe(32)
    return key, api_keys.add(db, person, digest(key), key[:_KEY_SHOWN], label)


def owner_of_key(db: Database, key: str | None) -> tuple[ApiKey, Person] | None:
    """Whose key this is, where it is good."""
    if not key or len(key) > 200 or not key.isascii():
        return None
    return api_keys.find(db, digest(key))
