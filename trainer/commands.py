"""The quick commands of the trainer: when it learns, what came of it, which version serves.

Nothing here needs torch, so that looking and rolling back are quick even while the machine trains.
"""

import argparse
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from chatbot.config import check_model_name
from chatbot.flags import from_flags
from data import runs, schedules, versions
from data.audit import COMMAND_LINE
from data.cli import show, table
from data.cron import next_times, validate
from data.database import Database
from data.errors import no_file
from data.home import Home
from data.prompts import read_prompts
from data.records import BASE_VERSION
from trainer.config import RefreshConfig, quick
from trainer.prune import prune as prune_runs
from trainer.watch import watch as run_watch

_CHOSEN = "{} is chosen: a running server answers with it, or says on the operator's page why it does not."
"""No more than is known here: whether a server runs, and with which model, the database does not say."""


def config_from(arguments: argparse.Namespace) -> RefreshConfig:
    """The settings of a night as the flags give them."""
    config = from_flags(arguments, RefreshConfig)
    return quick(config) if arguments.quick else config


def watch(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Claims due refreshes and runs them, until it is told to end."""
    config = config_from(arguments)
    _check_named(config)
    run_watch(home, db, asdict(config))


def _check_named(config: RefreshConfig) -> None:
    """What is mistyped is told now, not in each night. Raises NotFound, Refused or Problem."""
    check_model_name(config.model)
    for prompts in filter(None, (config.practice, config.judging)):
        read_prompts(Path(prompts))
    if config.ptx_data and not Path(config.ptx_data).is_file():
        raise no_file(Path(config.ptx_data))


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
        now = schedules.set_(db, now, COMMAND_LINE)
    times = [time.isoformat() for time in next_times(now, 5)]
    state = "Paused; otherwise next" if now.is_paused else "Next"
    lines = [
        f"{now.cron!r} in {now.zone}, if there are {schedules.wanted(now)} or more.",
        f"{state}: {', '.join(time[:16].replace('T', ' ') for time in times)}",
    ]
    show({**asdict(now), "next": times}, lines, as_json=arguments.json)


def list_versions(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lists the versions and which of them serves."""
    serving = versions.serving(db)
    every = [versions.get(db, BASE_VERSION), *versions.list_all(db)]
    rows = [
        [
            ("* " if version.name == serving.current else "  ") + version.name,
            "base model" if version.name == BASE_VERSION else version.status,
            version.parent or "-",
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

    reason = arguments.reason or "Published by hand."
    with db.write():  # meanwhile nobody prunes
        check_files(home, versions.get(db, arguments.version))
        serving = versions.publish(
            db, arguments.version, actor=COMMAND_LINE, reason=reason, force=arguments.force
        )
    show(asdict(serving), [_CHOSEN.format(serving.current)], as_json=arguments.json)


def rollback(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lets the version serve that served before."""
    serving = versions.rollback(db, actor=COMMAND_LINE, reason=arguments.reason)
    show(asdict(serving), [_CHOSEN.format(serving.current)], as_json=arguments.json)


def reference(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Shows or sets the reference: what PPO stays near, and starts from on a first night."""
    if arguments.version:
        name = None if arguments.version == BASE_VERSION else arguments.version
        versions.set_reference(db, name, actor=COMMAND_LINE)
    anchor = versions.serving(db).reference or BASE_VERSION
    show({"reference": anchor}, [f"{anchor} is the reference of the nights to come."], as_json=arguments.json)


def list_runs(home: Home, db: Database, arguments: argparse.Namespace) -> None:
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


def prune(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Frees what only old runs needed: checkpoints, snapshots, refused weights; what may serve stays."""
    done = prune_runs(db, home, keep=arguments.keep, dry_run=arguments.dry_run)
    would = "Would free" if arguments.dry_run else "Freed"
    kept = f"The newest {arguments.keep} runs that left something are kept"
    lines = [f"{would} {done.bytes / 1e6:.1f} MB of {len(done.runs)} runs. {kept}."]
    if done.versions:
        lines.append(f"Refused versions without weights now: {', '.join(done.versions)}.")
    show({**asdict(done), "is_dry_run": arguments.dry_run}, lines, as_json=arguments.json)


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"
