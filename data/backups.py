"""The backups of a home as files: their names, and which to keep.

A backup's name begins with its UTC time, so that names sort by age: `20261121T033000Z.db`, or with a label
`20261121T033000Z-before-migration.db`. Making and restoring them is in recovery.py.
"""

import time
from calendar import timegm
from pathlib import Path

from data.home import Home

_STAMP = "%Y%m%dT%H%M%SZ"
BEFORE_MIGRATION, REPLACED = "before-migration", "replaced"
"""The labels of a copy made before a migration, and of a database that a restore put aside."""
KEPT = ((3600.0, 24), (86400.0, 7), (604800.0, 4))
"""The newest backup of each of 24 hours, 7 days and 4 weeks is kept: (seconds, how many)."""
_LABELLED_SECONDS = 4 * 604800.0
"""How much older than the newest backup a copy with one of our labels becomes."""
_DAY = 86400.0
"""Hours count this long before the newest backup: daily ones would fill them all, and the disk."""


def backup_files(home: Home) -> list[Path]:
    """The backups of this home, newest first; after them what restores put aside, which may be damaged.

    One that somebody named otherwise is as old as its file says.
    """
    return sorted(
        home.backups.glob("*.db"),
        key=lambda path: (not path.stem.endswith(f"-{REPLACED}"), _dated(path), path.name),
        reverse=True,
    )


def other_copies(home: Home) -> list[Path]:
    """What else may hold rows: logs kept beside backups, and copies whose making was cut off."""
    found = (*home.backups.glob("*-wal"), *home.backups.glob("*.part"), *home.root.glob("restored.part"))
    return sorted(found)


def backup_path(home: Home, now: float, label: str = "") -> Path:
    """Where a backup made at `now` belongs."""
    stamp = time.strftime(_STAMP, time.gmtime(now))
    return home.backups / (f"{stamp}-{label}.db" if label else f"{stamp}.db")


def made_at(path: Path) -> float | None:
    """When a backup was made, by its name; None where the name is not ours."""
    try:
        return float(timegm(time.strptime(path.stem[:16], _STAMP)))
    except ValueError:
        return None


def _dated(path: Path) -> float:
    made = made_at(path)
    return path.lstat().st_mtime if made is None else made


def newest_at(home: Home, now: float) -> float | None:
    """When the newest backup without a label was made, ignoring any dated after `now`; None without one."""
    return max((made for _, made in _unlabelled(home) if made <= now), default=None)


def rotate(home: Home, now: float) -> list[Path]:
    """Deletes the backups that `KEPT` does not keep, and after four weeks those that a migration or a restore
    made; never one with a name of somebody's own. Returns what it deleted.

    Also deletes half-written `.part` files that are at least a day older than the newest backup. Copies count
    from the newest that is not dated after `now`: one from a time when the clock was ahead ages none of them.
    """
    ours = _unlabelled(home)
    newest = newest_at(home, now) or 0.0
    kept: set[Path] = set()
    for seconds, number in KEPT:
        newest_of_slot: dict[int, Path] = {}
        for path, made in ours:
            if seconds >= _DAY or newest - made < _DAY:
                newest_of_slot.setdefault(int(made // seconds), path)
        kept.update(list(newest_of_slot.values())[:number])
    gone = [path for path, _ in ours if path not in kept]
    gone += [path for path in home.backups.glob("*.part") if (made_at(path) or newest) <= newest - _DAY]
    for label in (BEFORE_MIGRATION, REPLACED):
        labelled = home.backups.glob(f"*Z-{label}.db*")  # a log may lie beside it
        gone += [path for path in labelled if (made_at(path) or newest) < newest - _LABELLED_SECONDS]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def _unlabelled(home: Home) -> list[tuple[Path, float]]:
    """The backups that rotate and when they were made, newest first."""
    return [(path, made) for path in backup_files(home) if (made := made_at(path)) and "-" not in path.stem]
