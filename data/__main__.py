"""The memory from the command line: `python -m data stats | export | import | backup | restore | forget`.

Each takes --json. It works beside a running server, but for `restore`, which needs the database to itself.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data import exchange, people, rankings, runs, versions
from data.backups import backup_files
from data.cli import run_cli
from data.database import Database, open_database
from data.errors import NotFound, Problem, Refused
from data.files import file_to_be
from data.forgetting import Forgotten, forget, scrub
from data.formats import FORMATS
from data.home import Home, open_home
from data.recovery import make_backup, restore

Answer = tuple[dict[str, Any], str]
"""What a command did: for --json, and in sentences."""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_cli(run, arguments)


def run(arguments: Sequence[str]) -> None:
    """Does what the arguments say. Raises Problem."""
    options = parser().parse_args(arguments)
    home = open_home(begins=options.run in (import_, restore_))
    found, text = options.run(home, options)
    out = sys.stderr if getattr(options, "file", None) == "-" else sys.stdout
    print(json.dumps(found, ensure_ascii=False) if options.json else text, file=out)


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(prog="python -m data", description="What Night School remembers.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _command(commands, "stats", stats, "Count people, turns, rankings, versions and runs.")
    out = _command(commands, "export", export, "Write what may teach as JSONL, for another trainer.")
    out.add_argument("file", help="Where to write; - is the terminal.")
    out.add_argument("--format", choices=FORMATS, default="preference", help="Default: preference (TRL).")
    into = _command(commands, "import", import_, "Read other people's rankings or demonstrations from JSONL.")
    into.add_argument("source", type=Path, metavar="file", help="The JSONL file, also gzip'd.")
    into.add_argument("--format", choices=FORMATS, default="preference", help="Default: preference (TRL).")
    into.add_argument(
        "--person",
        default="imported",
        help='Who stands for them, nobody who chats here. Default: "imported".',
    )
    for command in (out, into):
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = "\n".join(["formats:", *(f"  {name:<12}{row}" for name, row in FORMATS.items())])
    safe = _command(
        commands, "backup", backup, "Copy the database while it is in use; the versions are files beside it."
    )
    safe.add_argument(
        "--output", type=Path, help="Where to write it; by default among the home's backups, which rotate."
    )
    back = _command(
        commands, "restore", restore_, "Put a backup in the database's place; the server must be off."
    )
    back.add_argument("backup", type=Path, nargs="?", help="Which; by default the newest.")
    gone = _command(
        commands, "forget", forget_, "Delete a person with all they said, and name what learned from it."
    )
    gone.add_argument("name", help="The person's name.")
    gone.add_argument("--yes", action="store_true", help="Do not ask.")
    return top


def _command(commands: Any, name: str, run: Callable[..., Answer], sentence: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=sentence, description=sentence)
    made.add_argument("--json", action="store_true", help="Print one JSON object instead of sentences.")
    made.set_defaults(run=run)
    return made


def _with_database(command: Callable[[Database, Home, Any], Answer]) -> Callable[[Home, Any], Answer]:
    def run(home: Home, options: Any) -> Answer:
        db = open_database(home)
        try:
            return command(db, home, options)
        finally:
            db.close()

    return run


def _count(db: Database, table_and_where: str) -> int:
    return int(db.query(f"SELECT count(*) FROM {table_and_where}")[0][0])


@_with_database
def stats(db: Database, home: Home, options: Any) -> Answer:
    """What there is."""
    backups = backup_files(home)
    found: dict[str, Any] = {
        "people": people.count(db),
        "simulated_people": people.count(db, "simulated"),
        "conversations": _count(db, "conversations"),
        "turns": _count(db, "messages WHERE role = 'user'"),
        "replies": _count(db, "messages WHERE role = 'assistant' AND author_id IS NULL"),
        "demonstrations": _count(db, "messages WHERE role = 'assistant' AND author_id IS NOT NULL"),
        **rankings.counts(db),
        "new_rankings": rankings.count(db, after=runs.learned_until(db)),
        "versions": _count(db, "versions"),
        "serving": versions.serving(db).current,
        "runs": _count(db, "runs"),
        "megabytes": round(home.database.stat().st_size / 1e6, 1),
        "newest_backup": str(backups[0]) if backups else None,
    }
    width = max(len(name) for name in found)
    return found, "\n".join(
        f"{name.replace('_', ' '):<{width}}  {_shown(value)}" for name, value in found.items()
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number} {name}" for name, number in value.items()) or "none"
    return "none" if value is None else str(value)


@_with_database
def export(db: Database, home: Home, options: Any) -> Answer:
    """Streams the rows; a file is whole or untouched."""
    rows = exchange.export_rows(db, options.format)
    if options.file == "-":
        number = exchange.write_rows(rows, sys.stdout)
    else:
        with file_to_be(Path(options.file)) as partial, partial.open("w", encoding="utf-8") as file:
            number = exchange.write_rows(rows, file)
    return {"rows": number, "format": options.format, "file": options.file}, f"Wrote {number} rows."


@_with_database
def import_(db: Database, home: Home, options: Any) -> Answer:
    """Stores the usable rows and names the others. Refused where there is none that could be used."""
    result = exchange.import_rows(db, exchange.read_rows(options.source), options.format, options.person)
    if not result.added and not result.known:
        first = f": {result.skipped[0].rstrip('.')}" if result.skipped else ", for it has none"
        raise Refused(
            f"No row of {str(options.source)!r} could be imported{first} - give one JSON object a line, of "
            f"the format {options.format!r}, or name another --format."
        )
    return asdict(result), "\n".join(
        [*result.skipped, f"Added {result.added}, left out {len(result.skipped)}."]
    )


@_with_database
def backup(db: Database, home: Home, options: Any) -> Answer:
    """A checked copy."""
    if options.output is None:
        made = make_backup(db, home)
    else:
        made = options.output.absolute()
        if not made.parent.is_dir():
            raise NotFound(f"There is no directory {str(made.parent)!r} - make it first.")
        db.backup(made)
    return {"backup": str(made), "bytes": made.stat().st_size}, f"Backed up to {made}."


def restore_(home: Home, options: Any) -> Answer:
    """Back to a backup."""
    chosen = options.backup or next(iter(backup_files(home)), None)
    if chosen is None:
        raise NotFound(f"There is no backup in {str(home.backups)!r} - name a file.")
    aside = restore(home, chosen)
    kept = f" What was there is kept as {aside}." if aside else ""
    return {"restored": str(chosen), "kept": str(aside) if aside else None}, f"Restored {chosen}.{kept}"


@_with_database
def forget_(db: Database, home: Home, options: Any) -> Answer:
    """Deletes a person after a question."""
    person = people.by_name(db, options.name)
    if person is None:
        raise NotFound(f'There is nobody called {options.name!r} - run "chatbot person list".')
    if not options.yes:
        question = f"Delete {person.name} with everything they said, for ever? Type the name to go on: "
        if not sys.stdin.isatty() or input(question) != person.name:
            raise Refused("Nothing was deleted - type the name when asked, or add --yes.")
    done = forget(db, home, person)
    lines = _told(done, home)
    try:
        scrub(db)
    except Problem as problem:
        lines.append(
            f"The database's file may still hold copies of rows ({problem}) - a running trainer looks each "
            "hour whether it can rewrite it."
        )
    return asdict(done), "\n".join(lines)


def _told(done: Forgotten, home: Home) -> list[str]:
    """What a deletion did and what it left, in sentences."""
    lines = [f"Deleted {done.conversations} conversations and {done.rankings} rankings."]
    if done.versions:
        lines.append(f"These versions learned from them: {', '.join(done.versions)}.")
    if done.serving:
        lines.append(
            f"{done.serving} serves and keeps what it learned, and so does all that a refresh makes of it - "
            f'run "trainer publish {done.untainted}" to go back to before.'
        )
    elif done.versions:
        lines.append("None of them serves, so the next refresh descends from none of them.")
    if done.reference:
        lines.append(f"{done.reference} was the reference; that is the base model now.")
    if done.runs:
        lines.append(
            "Folders of runs that may hold their words or models taught by them, emptied but for the "
            f"log: {len(done.runs)}."
        )
    if done.backups:
        elsewhere = [path for path in done.backups if Path(path).parent != home.backups]
        where = " and ".join((f"those in {home.backups}", *elsewhere))
        lines.append(f"{len(done.backups)} backups still hold them - delete {where} if they must go.")
    if not done.is_wiped:
        lines.append(
            "The database's log keeps old pages, since another process reads them or the disk is full - make "
            "room and restart the server to remove them."
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
