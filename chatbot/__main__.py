"""The `chatbot` command.

chatbot serve                       the pages, the model, and the trainer beside them
chatbot chat                        a chat in the terminal
chatbot person add|list|role|disable|reset
chatbot key add|list|revoke         API keys, with which programs speak for people
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args

from chatbot import commands
from chatbot.config import ServeConfig
from chatbot.flags import add_flags, from_flags
from data.cli import run_cli
from data.database import open_database
from data.home import open_home
from data.records import PersonRole


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
    choices = top.add_subparsers(required=True, metavar="COMMAND")
    serve = choices.add_parser(
        "serve", help="Serve the pages until told to end.", description="Serve the pages until told to end."
    )
    add_flags(serve, ServeConfig)
    serve.set_defaults(run=_serve)
    _add_chat(choices)
    _add_person(choices)
    _add_key(choices)
    return top


def _add_chat(choices: Any) -> None:
    says = "Chat and rank in the terminal, with the version that serves."
    chat = choices.add_parser("chat", help=says, description=says)
    chat.add_argument("--model", metavar="TEXT", help="The model, as for `chatbot serve`.")
    chat.add_argument("--four-bit", action="store_true", help="Load the model in 4 bits, as for serve.")
    chat.add_argument(
        "--replies", type=int, default=1, metavar="N", help="Replies a turn, 1 to 9. (default: 1)"
    )
    chat.add_argument(
        "--as", dest="name", metavar="NAME", help="Chat as this person. (default: one of its own)"
    )
    chat.add_argument(
        "--max-new-tokens", type=int, default=0, metavar="N", help="Longest reply in tokens; 0 as for serve."
    )
    chat.add_argument("--json", action="store_true", help="Print one line of JSON per turn, and ask nothing.")
    chat.set_defaults(run=_chat)


def _add_actions(
    choices: Any, name: str, says: str, does: dict[str, tuple[Callable[[argparse.Namespace], int], str]]
) -> dict[str, argparse.ArgumentParser]:
    """The command `name` with its actions; their parsers, to which flags can be added."""
    actions = choices.add_parser(name, help=says, description=says).add_subparsers(
        required=True, metavar="ACTION"
    )
    made = {}
    for action, (function, sentence) in does.items():
        made[action] = actions.add_parser(action, help=sentence, description=sentence)
        made[action].add_argument("--json", action="store_true", help="Print JSON.")
        made[action].set_defaults(run=function)
    return made


def _add_person(choices: Any) -> None:
    actions = _add_actions(
        choices,
        "person",
        "Make, list, disable people, change what they may do, or reset a password.",
        {
            "add": (
                commands.add,
                "Make a person; prints a one-time link with which they set their password.",
            ),
            "list": (commands.list_people, "List everybody."),
            "role": (commands.role, "Change what a person may do, from their next click on."),
            "disable": (commands.disable, "Shut a person out, and end their sessions."),
            "reset": (
                commands.reset,
                "Print a new one-time link to set a password. The old password and older links open nothing "
                "any more; ends sessions, revokes API keys, and lets a disabled person in again.",
            ),
        },
    )
    for action in ("add", "role", "disable", "reset"):
        actions[action].add_argument("name", help="The name they sign in with.")
    actions["role"].add_argument("role", choices=get_args(PersonRole), help="What they may do.")
    actions["add"].add_argument(
        "--role", choices=get_args(PersonRole), default="user", help="What they may do. (default: user)"
    )
    for action in ("add", "reset"):
        actions[action].add_argument(
            "--password-stdin", action="store_true", help="Read the password from standard input instead."
        )
        actions[action].add_argument(
            "--url",
            default="",
            metavar="URL",
            help="Where the server is, for the link. (default: where it was started last)",
        )


def _add_key(choices: Any) -> None:
    actions = _add_actions(
        choices,
        "key",
        "Make, list, revoke API keys, with which programs speak for people at /v1.",
        {
            "add": (commands.add_key, "Make a key and print it, this once."),
            "list": (commands.list_keys, "List a person's keys, or everybody's."),
            "revoke": (commands.revoke_key, "Make a key open nothing any more."),
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
    from chatbot.serving import LoadedServer

    config = ServeConfig(
        model=arguments.model,
        four_bit=arguments.four_bit,
        replies=arguments.replies,
        max_new_tokens=arguments.max_new_tokens,
        trainer=False,
    )
    person = terminal.terminal_person(db, arguments.name)
    serving = LoadedServer(db, home, config, Metrics(db))
    try:
        terminal.chat(db, serving.turns, person, replies=config.replies, as_json=arguments.json)
    finally:
        serving.close()
        db.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
