"""The command line of the trainer. Each command prints a few lines, or with `--json` one JSON value.

trainer refresh | watch | schedule | simulate | measure | sft | reward | score | ppo | gate |
        versions | publish | reference | rollback | runs | prune
"""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType

from chatbot.flags import add_flags
from data.cli import run_cli
from data.database import Database, open_database
from data.home import Home, open_home
from trainer import commands, slow_commands
from trainer.config import RefreshConfig
from trainer.prune import KEEP
from trainer.reasons import ShutDown

_QUICK = "A shorter night, to try things out: one reward model, at most 8 updates and 150 gate prompts."

Command = Callable[[Home, Database, argparse.Namespace], int | None]
_CHECKING: tuple[Command, ...] = (
    commands.watch,
    slow_commands.refresh,
    slow_commands.sft,
    slow_commands.reward,
    slow_commands.ppo,
    slow_commands.gate,
)
"""What goes on for hours: these have the whole database checked first."""


def main() -> int:
    """The installed script. A machine that shuts down interrupts like Ctrl-C: the run can go on at once."""
    signal.signal(signal.SIGTERM, _shut_down)
    return run_cli(run)


def _shut_down(number: int, frame: FrameType | None) -> None:
    raise ShutDown


def run(argv: Sequence[str]) -> int | None:
    """Parses, opens home and database, runs one command."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    is_of_files = arguments.command is slow_commands.reward and bool(arguments.data)
    home = open_home(begins=is_of_files or arguments.command in (slow_commands.simulate, commands.watch))
    if is_of_files:
        slow_commands.reward_from_files(home, arguments)
        return 0
    command: Command = arguments.command
    with closing(open_database(home, check=command in _CHECKING)) as db:
        return command(home, db, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer",
        description="Learns from the rankings: decides when, from what, and which version serves.",
        epilog="State lies in ./var, or in $NIGHTSCHOOL_HOME.",
    )
    choices = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command) -> argparse.ArgumentParser:
        sentence = (command.__doc__ or "").strip()
        sub = choices.add_parser(name, help=sentence, description=sentence)
        sub.add_argument("--json", action="store_true", help="Print one JSON value.")
        sub.set_defaults(command=command)
        return sub

    _add_learning(add)
    _add_settings(add("watch", commands.watch))

    sub = add("schedule", commands.schedule)
    sub.add_argument("--cron", help="Minute, hour, day, month and weekday, like '30 3 * * *'.")
    sub.add_argument("--zone", help="The time zone, like Europe/Berlin.")
    sub.add_argument("--min-rankings", type=int, metavar="N", help="New rankings that a refresh needs.")
    pause = sub.add_mutually_exclusive_group()
    pause.add_argument("--pause", dest="is_paused", action="store_true", default=None, help="Pause it.")
    pause.add_argument("--resume", dest="is_paused", action="store_false", help="End the pause.")

    sub = add("simulate", slow_commands.simulate)
    _add_taste(sub)
    sub.add_argument("--turns", type=int, default=100, metavar="N", help="How many turns (default: 100).")
    sub.add_argument("--replies", type=int, default=4, metavar="K", help="Replies a turn (default: 4).")
    sub.add_argument("--noise", type=float, default=0.1, help="Noise in units of the spread (default: 0.1).")
    sub.add_argument(
        "--flip",
        type=float,
        default=0.0,
        metavar="X",
        help="Share of rankings turned upside down (default: 0).",
    )
    sub.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="What they say (default: ours).")
    sub.add_argument("--people", type=int, default=5, metavar="N", help="How many people (default: 5).")

    sub = add("measure", slow_commands.measure)
    _add_taste(sub)
    sub.add_argument(
        "--versions", default="base", help="Names, comma-separated; the others are compared with the first."
    )
    sub.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="Rows of prompts (default: ours).")
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="Replies a prompt (default: 1).")

    add("versions", commands.list_versions)
    sub = add("publish", commands.publish)
    sub.add_argument("version", help="Its name, like v000001, or base.")
    sub.add_argument("--force", action="store_true", help="Even where the gate refused it.")
    sub.add_argument("--reason", default="", help="Why, for the record.")
    sub = add("reference", commands.reference)
    sub.add_argument("version", nargs="?", help="A version that `trainer sft` made, or base.")
    sub = add("rollback", commands.rollback)
    sub.add_argument("--reason", default="", help="Why, for the record.")
    sub = add("runs", commands.list_runs)
    sub.add_argument("id", nargs="?", help="One run, with its figures.")
    sub = add("prune", commands.prune)
    sub.add_argument(
        "--keep", type=int, default=KEEP, metavar="N", help=f"Newest runs left whole (default: {KEEP})."
    )
    sub.add_argument("--dry-run", action="store_true", help="Only tell what would go.")
    return parser


def _add_learning(add: Callable[[str, Command], argparse.ArgumentParser]) -> None:
    """A night, and each of its stages alone."""
    sub = add("refresh", slow_commands.refresh)
    sub.add_argument(
        "--run", metavar="ID", help="Carry out this claimed run with its own settings (for watch)."
    )
    sub.add_argument("--resume", metavar="ID", help="Go on with an interrupted run, with its own settings.")
    _add_settings(sub)
    _add_settings(add("sft", slow_commands.sft))
    sub = add("reward", slow_commands.reward)
    sub.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="Comparisons to train on, instead of the rankings.",
    )
    sub.add_argument(
        "--evaluate", type=Path, nargs="+", metavar="FILE", help="Comparisons to examine it on (with --data)."
    )
    _add_settings(sub)
    sub = add("score", slow_commands.score)
    sub.add_argument("--version", required=True, help="The version whose reward models score.")
    sub.add_argument("--data", type=Path, required=True, metavar="FILE", help="Rows of prompt and replies.")
    sub.add_argument("--model", help="The base model: a directory or a hub id (default: the embedded one).")
    for name, command in (("ppo", slow_commands.ppo), ("gate", slow_commands.gate)):
        add(name, command).add_argument("id", metavar="RUN", help="The run's id, as `trainer runs` lists it.")


def _add_settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quick", action="store_true", help=_QUICK)
    add_flags(sub, RefreshConfig)


def _add_taste(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--taste", required=True, help="concise, structured, warm, or FILE.py:FUNCTION.")
    sub.add_argument("--model", help="The base model: a directory or a hub id (default: the embedded one).")
    sub.add_argument("--four-bit", action="store_true", help="Load the base in 4 bits (NF4, bitsandbytes).")
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Chooses prompts and noise (default: 0)."
    )


if __name__ == "__main__":
    sys.exit(main())
