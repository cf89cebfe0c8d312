"""The command line of the trainer. Each command prints a few lines, or with `--json` one JSON value.

What is heavy (torch and all that needs it) is imported inside the commands that use it, so that looking and
rolling back are quick even while the machine trains.

    trainer refresh | watch | schedule | simulate | measure | versions | publish | rollback | runs
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from chatbot.flags import add_flags, from_flags, run_cli, show, table
from data import runs, schedules, versions
from data.database import Database, new_id, open_database
from data.errors import Busy
from data.home import Home, open_home
from data.records import BASE_VERSION
from trainer.config import RefreshConfig
from trainer.schedule import next_times, validate
from trainer.watch import watch

if TYPE_CHECKING:
    from chatbot.basemodel import Base

Command = Callable[[Home, Database, argparse.Namespace], int | None]
ACTOR = "command line"
EXIT_REFUSED = 5
"""How `trainer refresh` ends where the gate refused the candidate; nothing is wrong, but nothing changed."""


def main() -> int:
    """The installed script."""
    return run_cli(run)


def run(argv: Sequence[str]) -> int | None:
    """Parses, opens home and database, runs one command."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    home = open_home()
    with closing(open_database(home)) as db:
        command: Command = arguments.command
        return command(home, db, arguments)


def refresh(home: Home, db: Database, arguments: argparse.Namespace) -> int:
    """A whole night, now: rankings, reward, PPO, gate, publication."""
    from trainer.refresh import refresh as run_refresh

    config = from_flags(arguments, RefreshConfig)
    given = runs.get(db, arguments.run) if arguments.run else None
    if given:
        config = RefreshConfig(**given.config)
    base = _load_base(config.model, home)
    claimed = given or runs.claim(db, f"manual-{new_id()}", config=asdict(config))
    if claimed is None:
        raise Busy('Another refresh is running - wait for it, or look at "trainer runs".')
    done = run_refresh(db, home, base, config, claimed)
    show(asdict(done), [f"{done.state.capitalize()} {done.version}: {done.reason}"], as_json=arguments.json)
    return 0 if done.state == "published" else EXIT_REFUSED


def watch_(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Claims due refreshes and runs them, until it is told to end."""
    watch(home, db, asdict(from_flags(arguments, RefreshConfig)))


def schedule(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Shows when refreshes come; sets it where a flag says so."""
    before = schedules.get(db)
    changes = {
        "cron": arguments.cron,
        "zone": arguments.zone,
        "min_rankings": arguments.min_rankings,
        "is_paused": arguments.is_paused,
    }
    now = replace(before, **{name: value for name, value in changes.items() if value is not None})
    validate(now.cron, now.zone)
    if now != before:
        now = schedules.set_(db, now, ACTOR)
    times = [time.isoformat() for time in next_times(now, 5)]
    state = "Paused; otherwise next" if now.is_paused else "Next"
    lines = [
        f"{now.cron!r} in {now.zone}, where at least {now.min_rankings} new rankings lie there.",
        f"{state}: {', '.join(time[:16].replace('T', ' ') for time in times)}",
    ]
    show({**asdict(now), "next": times}, lines, as_json=arguments.json)


def simulate(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lets simulated raters with a known taste chat and rank."""
    from chatbot.engine import Engine
    from chatbot.following import load_verified
    from chatbot.turns import Turns
    from trainer.raters import simulate as run_simulation
    from trainer.tastes import load_taste

    taste = load_taste(arguments.taste)
    engine = Engine(_load_base(arguments.model, home))
    engine.start()
    try:
        serving = versions.serving(db).current
        load_verified(db, home, engine, serving)
        engine.serve(serving)
        done = run_simulation(
            db,
            Turns(db, engine),
            taste=taste,
            turns_count=arguments.turns,
            replies=arguments.replies,
            noise=arguments.noise,
            people=arguments.people,
            seed=arguments.seed,
            progress=_bar("turns"),
        )
    finally:
        engine.close()
    line = f"{done.turns} turns of {serving} ranked by {arguments.people} simulated people."
    show(done.report(), [line], as_json=arguments.json)


def measure(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Measures versions against a taste; the first one named is what the others are held against."""
    from data.prompts import judging_prompts, read_prompts
    from trainer.measure import as_table
    from trainer.measure import measure as run_measurement
    from trainer.tastes import load_taste

    taste = load_taste(arguments.taste)
    names = [name.strip() for name in arguments.versions.split(",") if name.strip()]
    for name in names:
        versions.get(db, name)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else judging_prompts()
    report = run_measurement(
        _load_base(arguments.model, home),
        home,
        db,
        taste=taste,
        names=names,
        prompts=prompts,
        samples=arguments.samples,
        seed=arguments.seed,
        progress=_bar("versions"),
    )
    show(report, as_table(report), as_json=arguments.json)


def versions_(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lists the versions and which of them serves."""
    serving = versions.serving(db)
    every = [versions.get(db, BASE_VERSION), *versions.list_all(db)]
    rows = [
        [
            ("* " if version.name == serving.current else "  ") + version.name,
            version.status,
            version.parent,
            str(version.rankings),
            _time(version.created_at) if version.created_at else "",
        ]
        for version in every
    ]
    value = {"serving": asdict(serving), "versions": [asdict(version) for version in every]}
    lines = table(["  version", "status", "parent", "rankings", "made"], rows)
    show(value, [*lines, "", f"{serving.current} serves: {serving.reason}"], as_json=arguments.json)


def publish(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lets a version serve from the next turn on."""
    from trainer.publish import check_files

    check_files(home, versions.get(db, arguments.version))
    reason = arguments.reason or "Published by hand."
    serving = versions.publish(db, arguments.version, actor=ACTOR, reason=reason, force=arguments.force)
    show(asdict(serving), [f"{serving.current} serves from the next turn on."], as_json=arguments.json)


def rollback(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lets the version serve that served before."""
    serving = versions.rollback(db, actor=ACTOR, reason=arguments.reason)
    show(asdict(serving), [f"{serving.current} serves from the next turn on."], as_json=arguments.json)


def runs_(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lists the last runs, or shows one with its figures."""
    if arguments.id:
        one = runs.get(db, arguments.id)
        figures = [asdict(metric) for metric in runs.metrics(db, one.id)]
        lines = [f"{name}: {value}" for name, value in asdict(one).items() if value not in (None, "")]
        lines += [f"{m['stage']} {m['step']} {m['name']}: {m['value']:.5g}" for m in figures]
        show({**asdict(one), "metrics": figures}, lines, as_json=arguments.json)
        return
    every = runs.list_all(db)
    rows = [
        [one.id, one.key, one.state, f"{one.progress:.0%}", one.version or "", one.reason or one.message]
        for one in every
    ]
    lines = table(["id", "key", "state", "done", "version", "reason"], rows) if rows else ["No runs yet."]
    show([asdict(one) for one in every], lines, as_json=arguments.json)


def _load_base(model: str | None, home: Home) -> "Base":
    from chatbot.basemodel import load_base

    return load_base(model, home, lambda sentence: print(sentence, file=sys.stderr))


def _bar(unit: str) -> Callable[[int, int], None]:
    """A progress bar on stderr, where a person looks."""
    bar = tqdm(unit=f" {unit}", disable=not sys.stderr.isatty())

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer",
        description="Learns from the rankings: when, what and which version serves.",
        epilog="State lies in ./var, or in $NIGHTSCHOOL_HOME.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command) -> argparse.ArgumentParser:
        sentence = (command.__doc__ or "").strip()
        sub = commands.add_parser(name, help=sentence, description=sentence)
        sub.add_argument("--json", action="store_true", help="Print one JSON value.")
        sub.set_defaults(command=command)
        return sub

    sub = add("refresh", refresh)
    sub.add_argument(
        "--run", metavar="ID", help="Carry out this claimed run with its own settings (for watch)."
    )
    add_flags(sub, RefreshConfig)
    add_flags(add("watch", watch_), RefreshConfig)

    sub = add("schedule", schedule)
    sub.add_argument("--cron", help="Minute, hour, day, month and weekday, like '30 3 * * *'.")
    sub.add_argument("--zone", help="The time zone, like Europe/Berlin.")
    sub.add_argument("--min-rankings", type=int, metavar="N", help="New rankings that must lie there.")
    pause = sub.add_mutually_exclusive_group()
    pause.add_argument("--pause", dest="is_paused", action="store_true", default=None, help="Run none.")
    pause.add_argument("--resume", dest="is_paused", action="store_false", help="Run them again.")

    sub = add("simulate", simulate)
    _add_taste(sub)
    sub.add_argument("--turns", type=int, default=100, metavar="N", help="How many turns (default: 100).")
    sub.add_argument("--replies", type=int, default=4, metavar="K", help="Replies a turn (default: 4).")
    sub.add_argument("--noise", type=float, default=0.1, help="Noise in units of the spread (default: 0.1).")
    sub.add_argument("--people", type=int, default=5, metavar="N", help="How many people (default: 5).")

    sub = add("measure", measure)
    _add_taste(sub)
    sub.add_argument(
        "--versions", default="base", help="Names, separated by commas; the first is the measure."
    )
    sub.add_argument("--prompts", type=Path, metavar="FILE.jsonl", help="Rows of prompts (default: ours).")
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="Replies a prompt (default: 1).")

    add("versions", versions_)
    sub = add("publish", publish)
    sub.add_argument("version", help="Its name, like v000001, or base.")
    sub.add_argument("--force", action="store_true", help="Even where the gate refused it.")
    sub.add_argument("--reason", default="", help="Why, for the record.")
    sub = add("rollback", rollback)
    sub.add_argument("--reason", default="", help="Why, for the record.")
    sub = add("runs", runs_)
    sub.add_argument("id", nargs="?", help="One run, with its figures.")
    return parser


def _add_taste(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--taste", required=True, help="concise, structured, or FILE.py:FUNCTION.")
    sub.add_argument("--model", help="The base model: a directory or a hub id (default: the embedded one).")
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Chooses prompts and noise (default: 0)."
    )


if __name__ == "__main__":
    sys.exit(main())
