"""Old runs give back their room: what only they needed goes, what tells of them stays.

Of the ended runs that left something, the newest `keep` stay whole. Of the older ones checkpoints, samples,
snapshots and reward models go, and the weights of versions that the gate refused; rows, reports and logs
stay. A run that was to be resumed begins anew.

Never touched: a version that serves, served, may serve, is or was a reference, or has children, and the
reward models that it is scored by. Where the next night may go on from these, hashes tell it what they
learned from, and nobody's words stay.

    trainer prune
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from data import runs, versions
from data.database import Database
from data.errors import Problem, Refused
from data.home import Home
from data.records import Run, Version
from data.runfolder import EXAMINATIONS, LEARNED, LOG, REPORT, TAKEN_UP, can_go_on, is_reward_model

KEEP = 14
_STAYS = frozenset((LOG, TAKEN_UP, REPORT, EXAMINATIONS))
"""What stays of every run: what it said, what came of it, and the watcher's mark."""
_ASIDE = ".pruned-"
"""What a folder is called in which things wait to be removed."""


@dataclass(slots=True)
class Pruned:
    """What went, or would go."""

    bytes: int = 0
    runs: list[str] = field(default_factory=list)
    """Ids of the runs that lost something."""
    versions: list[str] = field(default_factory=list)
    """Refused versions whose weights went."""

    def count(self, home: Home, run_id: str, found: list[Path], size: int) -> None:
        """What is found of a run, so many bytes."""
        self.bytes += size
        self.runs += [run_id] * bool(found and run_id not in self.runs)
        weights = [path for path in found if path.parent == home.adapters]
        self.versions += [path.name for path in weights if not path.name.startswith(_ASIDE)]


def prune(db: Database, home: Home, *, keep: int = KEEP, dry_run: bool = False) -> Pruned:
    """Removes what runs before the newest `keep` left, and what a prune that was killed has only set aside;
    with `dry_run` it only counts.

    Raises Refused where `keep` is less than 1, Problem where something cannot be removed; the rest is then.
    """
    if keep < 1:
        raise Refused(f"keep is {keep!r} - use 1 or more.")
    every = versions.list_all(db)
    needed, warm = _needed(db, every), _warm(home, every)
    ended = [run for run in runs.list_all(db, limit=-1) if run.state != "running"]
    pruned, failures = Pruned(), list[str]()
    for aside in _forsaken(db, home, dry_run):
        with _noting(failures):
            size = _size(aside)
            if not dry_run:
                _throw_away(aside)
            pruned.count(home, aside.name.removeprefix(_ASIDE), [aside], size)
    for run in [run for run in ended if any(_leftovers(home, run, every, needed, warm))][keep:]:
        with _noting(failures):
            if dry_run:
                found = list(_leftovers(home, run, every, needed, warm))
                pruned.count(home, run.id, found, sum(map(_size, found)))
            else:
                _remove(db, home, run, pruned)
    if failures:
        raise Problem(f"{failures[-1]} - make it writable, and prune again.")
    return pruned


def _forsaken(db: Database, home: Home, dry_run: bool) -> list[Path]:
    """What a prune has set aside that was killed before it was gone. None that one at work is filling: that
    happens in a write. To count them, nobody's write is waited for."""
    with nullcontext() if dry_run else db.write():
        return [aside for folder in (home.runs, home.adapters) for aside in sorted(folder.glob(f"{_ASIDE}*"))]


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """What cannot be removed is told when the rest is gone."""
    try:
        yield
    except OSError as error:
        failures.append(f"{error.filename!r} cannot be removed ({error.strerror})")


def _needed(db: Database, every: list[Version]) -> set[str]:
    """The versions that somebody may still ask for."""
    serving = versions.serving(db)
    named = {serving.current, serving.previous, serving.challenger, serving.reference}
    named |= {version.name for version in every if version.status != "refused"}
    named |= {name for version in every for name in (version.parent, version.report.get("reference"))}
    for entry in versions.history(db, limit=-1):
        named |= {entry.detail.get("version"), entry.detail.get("before")}
    return {name for name in named if name}


def _leftovers(
    home: Home, run: Run, every: list[Version], needed: set[str], warm: set[Path]
) -> Iterator[Path]:
    """The files and folders that only this run needed."""
    made = [version for version in every if version.run_id == run.id]
    folder = home.runs / run.id
    if folder.is_dir():
        is_needed = any(version.name in needed for version in made)
        for path in sorted(folder.iterdir()):
            is_used = (is_needed and is_reward_model(path.name)) or (folder in warm and path.name == LEARNED)
            if path.name not in _STAYS and not is_used:
                yield path
    for version in made:
        weights = home.adapters / version.path
        if version.name not in needed and version.path and weights.is_dir():
            yield weights


def _warm(home: Home, every: list[Version]) -> set[Path]:
    """The folders that the next night may go on from: on each base, and for each size of the ensemble."""
    newest: dict[tuple[str, int], Path] = {}
    for version in every:
        folder = home.runs / str(version.run_id)
        if version.status == "accepted" and can_go_on(folder, members=1):
            models = sum(is_reward_model(path.name) for path in folder.iterdir())
            newest[version.base_sha256, models] = folder
    return set(newest.values())


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, which another prune may be removing."""
    size = 0
    for file in _files_below(path) if path.is_dir() and not path.is_symlink() else (str(path),):
        with suppress(FileNotFoundError):
            size += os.lstat(file).st_size
    return size


def _files_below(folder: Path) -> Iterator[str]:
    """All of them; a folder that is gone has none."""
    return (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)


def _remove(db: Database, home: Home, run: Run, pruned: Pruned) -> None:
    """Sets aside in one write what goes, and removes it when others can write again.

    During the write nobody takes the run up, and nobody comes to need one of its versions. Runs and adapters
    may be volumes of their own: each keeps what it sets aside.
    """
    asides = {folder: folder / f"{_ASIDE}{run.id}" for folder in (home.runs, home.adapters)}
    with db.write():
        if runs.get(db, run.id).fencing_token != run.fencing_token:
            return
        every = versions.list_all(db)
        warm = _warm(home, every)
        found = list(_leftovers(home, run, every, _needed(db, every), warm))
        for path in found:
            aside = asides[home.adapters if home.adapters in path.parents else home.runs]
            aside.mkdir(exist_ok=True)
            path.rename(aside / path.name)
    size = sum(map(_size, asides.values())) if found else 0
    for aside in asides.values():
        _throw_away(aside)
    pruned.count(home, run.id, found, size)


def _throw_away(aside: Path) -> None:
    """Removes what was set aside, whoever else is at it. OSError, with the folder's name, where it stays."""
    try:
        while aside.is_dir():
            with suppress(FileNotFoundError):  # another prune was faster, or somebody is being forgotten
                shutil.rmtree(aside)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(aside)) from error
