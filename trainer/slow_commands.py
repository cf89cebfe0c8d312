"""The commands that take a while: a night, each of its stages alone, simulated raters, measurements.

What is heavy (torch and all that needs it) is imported inside the functions that use it, so that `--help` and
wrong flags are answered at once.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data import runs, versions
from data.cli import show
from data.database import Database
from data.errors import Busy, Refused, no_file
from data.home import Home
from data.records import Run
from data.runfolder import HISTORY
from trainer.commands import config_from
from trainer.config import RefreshConfig
from trainer.telling import Counted

if TYPE_CHECKING:
    from chatbot.basemodel import Base
    from trainer.refresh import Stage
    from trainer.team import Team

EXIT_REFUSED = 5
"""The exit code of a run that ended as refused: nothing is wrong, but nothing changed."""


def refresh(home: Home, db: Database, arguments: argparse.Namespace) -> int:
    """A whole night, now: rankings, reward models, PPO, gate, publication."""
    if arguments.resume:
        return _go_on(home, db, arguments, arguments.resume, "gate")
    if arguments.run:
        run = runs.get(db, arguments.run)
        return _night(home, db, arguments, _load_base(run.config.get("model"), home), run, "gate", _team())
    return _begin(home, db, arguments, "manual", "gate")


def ppo(home: Home, db: Database, arguments: argparse.Namespace) -> int:
    """Stage 3 alone: improves the policy against the reward models of a run that `reward` began."""
    return _go_on(home, db, arguments, arguments.id, "ppo")


def gate(home: Home, db: Database, arguments: argparse.Namespace) -> int:
    """The gate alone: judges the candidate of a run that `ppo` brought that far, and publishes it."""
    _check_candidate(home, runs.get(db, arguments.id))
    return _go_on(home, db, arguments, arguments.id, "gate")


def _check_candidate(home: Home, run: Run) -> None:
    """Raises Refused where a night rests before its gate; `_go_on` says what else is in the way."""
    rests = run.state in ("interrupted", "failed", "cancelled") and run.kind != "sft"
    if rests and not (home.runs / run.id / HISTORY).is_file():
        command = "ppo" if run.kind == "reward" else "refresh --resume"
        raise Refused(f'Run {run.id!r} has no candidate yet - go on with "trainer {command} {run.id}".')


def reward(home: Home, db: Database, arguments: argparse.Namespace) -> int:
    """Stage 2 alone: trains reward models on the rankings, or on files of comparisons, and examines them."""
    if arguments.evaluate:
        raise Refused("--evaluate needs something to train on - add --data FILE.")
    return _begin(home, db, arguments, "reward", "reward")


def reward_from_files(home: Home, arguments: argparse.Namespace) -> None:
    """`trainer reward --data`: no database is read, written or made."""
    _check_there([*arguments.data, *(arguments.evaluate or [])])
    from trainer.scoring import as_lines, train_and_evaluate

    config, bar = config_from(arguments), _bar("steps")
    report = train_and_evaluate(
        _load_base(config.model, home),
        arguments.data,
        arguments.evaluate or [],
        config,
        tell=lambda name, step, fraction, metrics: bar(round(fraction * 1000), 1000),
    )
    show(report, as_lines(report), as_json=arguments.json)


def score(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Scores replies by the reward models that a version was made with."""
    _check_there([arguments.data])
    from trainer.scoring import reward_folders, score_file

    version = versions.get(db, arguments.version)
    base = _load_base(arguments.model, home)
    config = _settings(version.report.get("config", {}), f"Version {version.name!r}")
    config = replace(config, threads=0)  # the night's may have been those of another machine
    rows = score_file(base, reward_folders(home, version, base), arguments.data, config)
    lines = [f"{row['id']}  " + "  ".join(f"{value:+.3f}" for value in row["scores"]) for row in rows]
    show(rows, lines, as_json=arguments.json)


def _check_there(files: Sequence[Path]) -> None:
    """Raises NotFound before anything slow is begun."""
    for path in files:
        if not path.exists():
            raise no_file(path)


def sft(home: Home, db: Database, arguments: argparse.Namespace) -> int:
    """Stage 1: fine-tunes on demonstrations; the result is the reference, which PPO stays near."""
    from trainer.sft import fine_tune

    config, team = config_from(arguments), _team()
    base = _load_base(config.model, home)
    done = fine_tune(db, home, base, config, _claim(db, config, "sft", team), team=team)
    if not team.is_chief:
        return 0
    _show_run(done, [], as_json=arguments.json)
    return EXIT_REFUSED if done.state == "refused" else 0


def _claim(db: Database, config: RefreshConfig, kind: str, team: "Team") -> Run:
    """A run of one's own, which the chief claims for all."""
    key = runs.new_key(kind)
    claimed = team.broadcast(runs.claim(db, key, config=asdict(config)) if team.is_chief else None)
    if claimed is None:
        raise Busy('Another run is under way - wait for it, or look at "trainer runs".')
    return claimed


def _begin(home: Home, db: Database, arguments: argparse.Namespace, kind: str, until: "Stage") -> int:
    """Claims a new run, once all that it needs is there."""
    config, team = config_from(arguments), _team()
    base = _load_base(config.model, home)
    return _night(home, db, arguments, base, _claim(db, config, kind, team), until, team)


def _go_on(home: Home, db: Database, arguments: argparse.Namespace, run_id: str, until: "Stage") -> int:
    """Takes up an interrupted run where it was."""
    team, paused = _team(), runs.get(db, run_id)
    if paused.kind == "sft":
        raise Refused(f'Run {run_id!r} is a fine-tuning, which always begins anew - run "trainer sft".')
    if until == "ppo" and paused.kind != "reward":
        raise Refused(f'Run {run_id!r} is not at this stage - begin with "trainer reward" or a new refresh.')
    base = _load_base(_settings(paused.config, f"Run {run_id!r}").model, home)
    run = team.broadcast(runs.resume(db, run_id) if team.is_chief else None)
    if run is None:
        raise Busy('Another run is under way - wait for it, or look at "trainer runs".')
    return _night(home, db, arguments, base, run, until, team)


def _night(
    home: Home,
    db: Database,
    arguments: argparse.Namespace,
    base: "Base",
    run: Run,
    until: "Stage",
    team: "Team",
) -> int:
    """Carries out a claimed run with its own settings."""
    from trainer.gate import report_lines
    from trainer.refresh import refresh as run_refresh

    config = _settings(run.config, f"Run {run.id!r}")
    done = run_refresh(db, home, base, config, run, until=until, team=team)
    if not team.is_chief:
        return 0
    verdict = versions.get(db, done.version).report.get("gate") if done.version else None
    _show_run(done, report_lines(verdict) if verdict else [], as_json=arguments.json)
    return EXIT_REFUSED if done.state == "refused" else 0


def _settings(stored: Mapping[str, Any], whose: str) -> RefreshConfig:
    """The settings that were stored with a run or a version."""
    try:
        return RefreshConfig(**stored)
    except TypeError as error:
        raise Refused(f"{whose} has settings of another release ({error}) - start a new refresh.") from error


def _show_run(done: Run, lines: list[str], *, as_json: bool) -> None:
    outcome = f"{done.state.capitalize()} {done.version or done.id}: {done.reason}"
    show(asdict(done), [*lines, outcome], as_json=as_json)


def _team() -> "Team":
    """Whom this process works with: nobody, unless a launcher (accelerate, torchrun) started it."""
    from trainer.team import SOLO, join

    return join() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SOLO


def simulate(home: Home, db: Database, arguments: argparse.Namespace) -> None:
    """Lets simulated raters with a known taste chat and rank."""
    from chatbot.engine import Engine
    from chatbot.following import load_verified
    from chatbot.turns import Turns
    from data.prompts import read_prompts
    from trainer.raters import simulate as run_simulation
    from trainer.tastes import load_taste

    taste = load_taste(arguments.taste)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else None
    engine = Engine(_load_base(arguments.model, home), four_bit=arguments.four_bit)
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
            flipped=arguments.flip,
            people=arguments.people,
            seed=arguments.seed,
            prompts=prompts,
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
    base = _load_base(arguments.model, home)
    report = run_measurement(
        base,
        home,
        db,
        taste=taste,
        names=names,
        prompts=[prompt for prompt in prompts if base.format.fits(prompt.messages, base.context)],
        samples=arguments.samples,
        four_bit=arguments.four_bit,
        seed=arguments.seed,
        progress=_bar("versions"),
    )
    show(report, as_table(report), as_json=arguments.json)


def _load_base(model: str | None, home: Home) -> "Base":
    from chatbot.basemodel import load_base

    return load_base(model, home, lambda sentence: print(sentence, file=sys.stderr))


def _bar(unit: str) -> Counted:
    """A progress bar on stderr, where a person looks."""
    bar = tqdm(unit=f" {unit}", disable=not sys.stderr.isatty())

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress
