"""Old runs give back their room: what only they needed goes, what tells of them stays.

Of the ended runs that left something, the newest `keep` stay whole. Of the older ones checkpoints, samples,
snapshots and reward models go, and the weights of versions that the gate refused; rows, reports and logs
stay. A run that was to be resumed begins anew.

Never touched: a version that serves, served, may serve, is or was a reference, or has children, and the
reward models that it is scored by; and all that the next night goes on from.

    trainer prune
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data import runs, versions
from data.database import Database
from data.errors import Problem, Refused
from data.home import Home
from data.records import Run, Version

KEEP = 14
_STAYS = frozenset(("output.log", "taken-up", "report.json", "reports.json"))
"""What stays of every run: what it said, what came of it, and the watcher's mark."""
_WARM = ("snapshot.jsonl", "learned.json", "judge", "reward-0")
"""Without these no night goes on from a run (fitting.py)."""


@dataclass(slots=True)
class Pruned:
    """What went, or would go."""

    bytes: int = 0
    runs: list[str] = field(default_factory=list)
    """Ids of the runs that lost something."""
    versions: list[str] = field(default_factory=list)
    """Refused versions whose weights went."""


def prune(db: Database, home: Home, *, keep: int = KEEP, dry_run: bool = False) -> Pruned:
    """Removes what runs before the newest `keep` left; with `dry_run` it only counts.

    Raises Refused where `keep` is less than 1, Problem where something cannot be removed.
    """
    if keep < 1:
        raise Refused(f"keep is {keep!r} - use 1 or more.")
    every = versions.list_all(db)
    needed, warm = _needed(db, every), _warm(home, every)
    left = (
        (run, found)
        for run in runs.list_all(db, limit=-1)
        if run.state != "running" and home.runs / run.id not in warm
        if (found := list(_leftovers(home, run, every, needed)))
    )
    pruned = Pruned()
    for number, (run, found) in enumerate(left):
        if number < keep:
            continue
        pruned.bytes += sum(map(_size, found))
        pruned.runs.append(run.id)
        pruned.versions += [path.name for path in found if path.parent == home.adapters]
        if not dry_run:
            _remove(db, run, found)
    return pruned


def _needed(db: Database, every: list[Version]) -> set[str]:
    """The versions that somebody may still ask for."""
    serving = versions.serving(db)
    named = {serving.current, serving.previous, serving.challenger, serving.reference}
    named |= {version.name for version in every if version.status != "refused"}
    named |= {name for version in every for name in (version.parent, version.report.get("reference"))}
    for entry in versions.history(db, limit=-1):
        named |= {entry.detail.get("version"), entry.detail.get("before")}
    return {name for name in named if name}


def _leftovers(home: Home, run: Run, every: list[Version], needed: set[str]) -> Iterator[Path]:
    """The files and folders that only this run needed."""
    made = [version for version in every if version.run_id == run.id]
    folder = home.runs / run.id
    if folder.is_dir():
        is_needed = any(version.name in needed for version in made)
        for path in sorted(folder.iterdir()):
            is_model = path.name == "judge" or path.name.startswith("reward-")
            if path.name not in _STAYS and not (is_needed and is_model):
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
        if version.status == "accepted" and all((folder / name).exists() for name in _WARM):
            newest[version.base_sha256, len(list(folder.glob("reward-*")))] = folder
    return set(newest.values())


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,)
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def _remove(db: Database, run: Run, found: list[Path]) -> None:
    """Nobody takes the run up meanwhile: that would be a write."""
    with db.write():
        if runs.get(db, run.id).fencing_token != run.fencing_token:
            return
        try:
            for path in found:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise Problem(
                f"{error.filename!r} cannot be removed ({error.strerror}) - make it writable, prune again."
            ) from error
