"""The `chatbot` command.

chatbot serve                       the pages, the model, and the trainer beside them
chatbot chat                        a chat in the terminal
chatbot person add|list|disable|reset
chatbot key add|list|revoke         API keys, with which programs speak for people
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, get_args

from chatbot import accounts
from chatbot.config import ServeConfig
from chatbot.flags import add_flags, from_flags, run_cli, show, table
from data import api_keys, people
from data.api_keys import ApiKey
from data.database import Database, open_database
from data.errors import NotFound, Refused
from data.home import open_home
from data.records import Person, PersonRole


def main(argv: Sequence[str] | None = None) -> int:
    return run_cli(run, argv)


def run(argv: Sequence[str]) -> int:
    """Do what the arguments say; the exit code. Raises Problem."""
    arguments = parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def parser() -> argparse.ArgumentParser:
    """Every subcommand, with a sentence for each flag."""
    top = argparse.ArgumentParser(
        prog="chatbot",
        description="Chat with an assistant that learns overnight from your rankings.",
        epilog="State lies in ./var, or where NIGHTSCHOOL_HOME points.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="Serve the pages until told to end.", description="Serve the pages until told to end."
    )
    add_flags(serve, ServeConfig)
    serve.set_defaults(run=_serve)
    _add_chat(commands)
    _add_person(commands)
    _add_key(commands)
    return top


def _add_chat(commands: Any) -> None:
    says = "Chat and rank in the terminal, with the version that serves."
    chat = commands.add_parser("chat", help=says, description=says)
    chat.add_argument("--model", metavar="TEXT", help="The model, as for `chatbot serve`.")
    chat.add_argument("--four-bit", action="store_true", help="Load the model in 4 bits, as for serve.")
    chat.add_argument(
        "--replies", type=int, default=1, metavar="N", help="Replies a turn, 1 to 9. (default: 1)"
    )
    chat.add_argument(
        "--as", dest="name", metavar="NAME", help="Chat as this person. (default: one of its own)"
    )
    chat.add_argument(
        "--max-new-tokens", type=int, default=0, metavar="N", help="The longest reply; 0 chooses."
    )
    chat.add_argument("--json", action="store_true", help="One line of JSON a turn, and no questions.")
    chat.set_defaults(run=_chat)


def _add_actions(
    commands: Any, name: str, says: str, does: dict[str, tuple[Callable[[argparse.Namespace], int], str]]
) -> dict[str, argparse.ArgumentParser]:
    """The command `name` with its actions; their parsers, to which flags can be added."""
    actions = commands.add_parser(name, help=says, description=says).add_subparsers(
        required=True, metavar="ACTION"
    )
    made = {}
    for action, (function, sentence) in does.items():
        made[action] = actions.add_parser(action, help=sentence, description=sentence)
        made[action].add_argument("--json", action="store_true", help="Print JSON.")
        made[action].set_defaults(run=function)
    return made


def _add_person(commands: Any) -> None:
    actions = _add_actions(
        commands,
        "person",
        "Make, list, disable people, or reset a password.",
        {
            "add": (_add, "Make a person; prints a one-time link with which they set their password."),
            "list": (_list, "List everybody."),
            "disable": (_disable, "Shut a person out, and end their sessions."),
            "reset": (
                _reset,
                "Print a new one-time link to set a password; ends sessions, revokes API keys, and lets a "
                "disabled person in again.",
            ),
        },
    )
    for action in ("add", "disable", "reset"):
        actions[action].add_argument("name", help="The name they sign in with.")
    actions["add"].add_argument(
        "--role", choices=get_args(PersonRole), default="user", help="What they may do. (default: user)"
    )
    for action in ("add", "reset"):
        actions[action].add_argument(
            "--password-stdin", action="store_true", help="Read the password from standard input instead."
        )
        actions[action].add_argument(
            "--url",
            default=ServeConfig().url,
            metavar="URL",
            help="Where the server is. (default: %(default)s)",
        )


def _add_key(commands: Any) -> None:
    actions = _add_actions(
        commands,
        "key",
        "Make, list, revoke API keys, with which programs speak for people at /v1.",
        {
            "add": (_add_a_key, "Make a key and print it, this once."),
            "list": (_list_keys, "List a person's keys, or everybody's."),
            "revoke": (_revoke_key, "Make a key open nothing any more."),
        },
    )
    for action, optional in (("add", None), ("list", "?")):
        actions[action].add_argument("name", nargs=optional, help="The person for whom it speaks.")
    actions["add"].add_argument("--label", default="", metavar="TEXT", help="What it is for.")
    actions["revoke"].add_argument("id", help="The key's id, as `chatbot key list` prints it.")


def _serve(arguments: argparse.Namespace) -> int:
    config = from_flags(arguments, ServeConfig)
    from chatbot.server import run_server

    code = run_server(config)
    sys.stdout.flush()
    # All is stored and closed; taking torch and Gradio apart object by object would cost seconds more.
    os._exit(code)


def _chat(arguments: argparse.Namespace) -> int:
    home = open_home()
    db = open_database(home)
    from chatbot import terminal
    from chatbot.metrics import Metrics
    from chatbot.serving import Serving

    config = ServeConfig(
        model=arguments.model,
        four_bit=arguments.four_bit,
        replies=arguments.replies,
        max_new_tokens=arguments.max_new_tokens,
        trainer=False,
    )
    person = terminal.terminal_person(db, arguments.name)
    serving = Serving(db, home, config, Metrics(db))
    try:
        terminal.chat(db, serving.turns, person, replies=config.replies, as_json=arguments.json)
    finally:
        serving.close()
        db.close()
    return 0


def _add(arguments: argparse.Namespace) -> int:
    db = open_database(open_home())
    name, hashed = accounts.check_name(arguments.name), None
    if arguments.password_stdin:
        hashed = accounts.hash_password(sys.stdin.readline().rstrip("\n"))
    with db.write():
        person = people.add(db, name, role=arguments.role, password_hash=hashed)
        people.record(db, "command line", "person add", {"name": person.name, "role": person.role})
    _tell(arguments, db, person, f"{person.name} is here as {person.role}.", needs_link=hashed is None)
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    db = open_database(open_home())
    person = _named(db, arguments.name)
    hashed = None
    if arguments.password_stdin:
        hashed = accounts.hash_password(sys.stdin.readline().rstrip("\n"))
    with db.write():
        if hashed:
            people.set_password(db, person.id, hashed)
        people.set_disabled(db, person.id, False)
        accounts.sign_out_everywhere(db, person, "command line")
        people.record(db, "command line", "person reset", {"name": person.name})
    _tell(
        arguments,
        db,
        people.get(db, person.id),
        f"{person.name} is signed out everywhere, and their API keys are revoked.",
        needs_link=not hashed,
    )
    return 0


def _disable(arguments: argparse.Namespace) -> int:
    db = open_database(open_home())
    person = _named(db, arguments.name)
    with db.write():
        people.set_disabled(db, person.id, True)
        people.close_sessions(db, person.id)
        people.record(db, "command line", "person disable", {"name": person.name})
    _tell(arguments, db, people.get(db, person.id), f"{person.name} is shut out.", needs_link=False)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    everybody = people.list_all(open_database(open_home()))
    if arguments.json:
        print(json.dumps([asdict(person) for person in everybody], ensure_ascii=False))
    elif not everybody:
        print("Nobody is here yet - `chatbot serve` prints the link that makes the first operator.")
    for person in [] if arguments.json else everybody:
        notes = [person.role, *(["simulated"] if person.kind == "simulated" else [])]
        print(f"{person.name:24} {', '.join([*notes, *(['disabled'] if person.is_disabled else [])])}")
    return 0


def _add_a_key(arguments: argparse.Namespace) -> int:
    db = open_database(open_home())
    person = _named(db, arguments.name)
    from chatbot.api_keys import make

    secret, key = make(db, person, arguments.label)
    lines = [f"{person.name}'s new API key; it is not shown again:", f"  {secret}"]
    show({**asdict(key), "key": secret}, lines, as_json=arguments.json)
    return 0


def _list_keys(arguments: argparse.Namespace) -> int:
    db = open_database(open_home())
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


def _revoke_key(arguments: argparse.Namespace) -> int:
    db = open_database(open_home())
    key = api_keys.get(db, arguments.id)
    api_keys.revoke(db, key, "command line")
    lines = [f"{key.prefix}... of {people.get(db, key.person_id).name} opens nothing any more."]
    show(asdict(api_keys.get(db, key.id)), lines, as_json=arguments.json)
    return 0


def _day(key: ApiKey) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(key.last_used_at)) if key.last_used_at else "never"


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
    link = (
        f"{arguments.url.rstrip('/')}/set-password?link={accounts.password_link(db, person)}"
        if needs_link
        else None
    )
    if arguments.json:
        print(json.dumps({**asdict(person), "link": link}, ensure_ascii=False))
        return
    print(sentence)
    if link:
        print(f"They set a password with this link (once, within 24 hours):\n  {link}")


if __name__ == "__main__":
    sys.exit(main())
