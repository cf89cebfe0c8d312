"""What `chatbot person` and `chatbot key` do: who is there, what they may do, which programs speak for them.

Done by whoever can reach the database, so nobody is asked who they are; the audit says "command line".
"""

import argparse
import json
import secrets
import sys
import time
from dataclasses import asdict

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.remembered import recall
from data import api_keys, audit, people
from data.api_keys import ApiKey
from data.audit import COMMAND_LINE
from data.cli import show, table
from data.database import Database, open_database
from data.errors import NotFound, Refused
from data.home import open_home
from data.records import Person


def add(arguments: argparse.Namespace) -> int:
    """Makes a person."""
    db = _memory()
    name, hashed = accounts.check_name(arguments.name), None
    if arguments.password_stdin:
        hashed = accounts.hash_password(_typed())
    with db.write():
        person = people.add(db, name, role=arguments.role, password_hash=hashed)
        audit.record(db, COMMAND_LINE, "person add", {"name": person.name, "role": person.role})
    _tell(arguments, db, person, f"{person.name} is here as {person.role}.", needs_link=hashed is None)
    return 0


def role(arguments: argparse.Namespace) -> int:
    """Changes what a person may do."""
    db = _memory()
    person = _named(db, arguments.name)
    accounts.change_role(db, person, arguments.role, COMMAND_LINE)
    _tell(
        arguments,
        db,
        people.get(db, person.id),
        f"{person.name} is {arguments.role} from their next click on.",
        needs_link=False,
    )
    return 0


def reset(arguments: argparse.Namespace) -> int:
    """Takes the password, all sessions and all API keys away; a new password is set by link, or is typed.

    Until the link is used the password is a random one that nobody knows; that also voids earlier links.
    """
    db = _memory()
    person = _named(db, arguments.name)
    hashed = accounts.hash_password(_typed() if arguments.password_stdin else secrets.token_urlsafe())
    with db.write():
        people.set_password(db, person.id, hashed)
        people.set_disabled(db, person.id, False)
        accounts.sign_out_everywhere(db, person, COMMAND_LINE)
        audit.record(db, COMMAND_LINE, "person reset", {"name": person.name})
    _tell(
        arguments,
        db,
        people.get(db, person.id),
        f"{person.name}'s old password opens nothing any more; they are signed out everywhere, and their API "
        "keys are revoked.",
        needs_link=not arguments.password_stdin,
    )
    return 0


def disable(arguments: argparse.Namespace) -> int:
    """Shuts a person out."""
    db = _memory()
    person = _named(db, arguments.name)
    accounts.disable(db, person, COMMAND_LINE)
    _tell(arguments, db, people.get(db, person.id), f"{person.name} is shut out.", needs_link=False)
    return 0


def list_people(arguments: argparse.Namespace) -> int:
    """Lists everybody."""
    everybody = people.list_all(_memory())
    if arguments.json:
        print(json.dumps([asdict(person) for person in everybody], ensure_ascii=False))
    elif not everybody:
        print("Nobody is here yet - `chatbot serve` prints the link that makes the first operator.")
    for person in [] if arguments.json else everybody:
        notes = [person.role, *(["simulated"] if person.kind == "simulated" else [])]
        print(f"{person.name:24} {', '.join([*notes, *(['disabled'] if person.is_disabled else [])])}")
    return 0


def add_key(arguments: argparse.Namespace) -> int:
    """Makes an API key and shows it, this once."""
    db = _memory()
    person = _named(db, arguments.name)
    secret, key = accounts.make_key(db, person, arguments.label)
    lines = [f"{person.name}'s new API key; it is not shown again:", f"  {secret}"]
    show({**asdict(key), "key": secret}, lines, as_json=arguments.json)
    return 0


def list_keys(arguments: argparse.Namespace) -> int:
    """Lists the API keys of a person, or of everybody."""
    db = _memory()
    owners = [_named(db, arguments.name)] if arguments.name else people.list_all(db)
    found = [(owner, key) for owner in owners for key in api_keys.list_for(db, owner.id)]
    header = ("id", "person", "key", "label", "last used", "state")
    rows = [
        (key.id, owner.name, f"{key.prefix}...", key.label, _day(key), "revoked" if key.is_revoked else "")
        for owner, key in found
    ]
    nobody = ["There are no API keys yet - `chatbot key add NAME` makes one."]
    show([asdict(key) for _, key in found], table(header, rows) if rows else nobody, as_json=arguments.json)
    return 0


def revoke_key(arguments: argparse.Namespace) -> int:
    """Makes an API key open nothing any more."""
    db = _memory()
    key = api_keys.get(db, arguments.id)
    api_keys.revoke(db, key, COMMAND_LINE)
    lines = [f"{key.prefix}... of {people.get(db, key.person_id).name} opens nothing any more."]
    show(asdict(api_keys.get(db, key.id)), lines, as_json=arguments.json)
    return 0


def _memory() -> Database:
    """The database that a server has begun."""
    return open_database(open_home(begins=False))


def _day(key: ApiKey) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(key.last_used_at)) if key.last_used_at else "never"


def _typed() -> str:
    """The password that stands on standard input."""
    return sys.stdin.readline().rstrip("\n")


def _named(db: Database, name: str) -> Person:
    person = people.by_name(db, name)
    if person is None:
        raise NotFound(f'Nobody is called {name!r} - run "chatbot person list" to see who there is.')
    if person.kind != "human":
        raise Refused(f"{person.name!r} is a simulated rater - it has no password and no sessions.")
    return person


def _tell(
    arguments: argparse.Namespace, db: Database, person: Person, sentence: str, *, needs_link: bool
) -> None:
    """Say what was done, with a link where a password is to be set."""
    link = _link(arguments, db, person) if needs_link else None
    if arguments.json:
        print(json.dumps({**asdict(person), "link": link}, ensure_ascii=False))
        return
    print(sentence)
    if link:
        print(f"They set a password with this link (once, within 24 hours):\n  {link}")


def _link(arguments: argparse.Namespace, db: Database, person: Person) -> str:
    """A one-time link to set a password: of `--url`, else of where the server was started last."""
    address = arguments.url or recall(open_home(begins=False).address).get("url") or ServeConfig().url
    return f"{address.rstrip('/')}/set-password?link={accounts.make_password_link(db, person)}"
