"""A version is published whole or not at all: an immutable directory and one row.

The candidate's files are copied into a temporary directory beside the versions, hashed, described by a
manifest and forced to disk. All that takes long happens there, before any transaction: nobody else can write
to the database during one. Then one rename and one row make the version appear; a crash between the two
leaves a directory without a row, which the next publication of that name removes. Which version *serves* is
another row (data/versions.py): nothing here changes what anybody is answered by.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot import adapters
from chatbot.adapters import ADAPTER_FILES
from chatbot.basemodel import Base
from chatbot.manifest import (
    MANIFEST,
    Canary,
    Manifest,
    RewardRecord,
    hash_file,
    read_manifest,
    write_manifest,
)
from data import versions
from data.database import Database
from data.errors import Refused
from data.files import force_folder_to_disk, rename_durably
from data.home import Home
from data.records import Run, Version, VersionStatus

_UNFINISHED = ".candidate-"
"""How the name of a directory begins in which a candidate is being written."""
_FORGOTTEN = 86_400
"""Seconds after which nobody writes there any more."""


@dataclass(frozen=True)
class Candidate:
    """A version to be: its files are whole, checked and on the disk, but not yet where versions lie."""

    db: Database
    run: Run | None
    manifest: Manifest
    directory: Path
    target: Path

    def appear(self, *, report: dict[str, Any], status: VersionStatus) -> Version:
        """Gives the version its row and its place; returns the row.

        A refused candidate becomes a version too: what was refused, and why, can be looked at later.
        Raises Refused, leaving nothing behind, where the run lost its lease or the name was taken meanwhile.
        """
        with self.db.write():
            if self.run is not None:
                versions.check_lease(self.db, self.run)
            version = versions.add(
                self.db,
                name=self.manifest.name,
                parent=self.manifest.parent,
                base_model=self.manifest.base_model,
                base_sha256=self.manifest.base_sha256,
                path=self.target.name,
                sha256=hash_file(self.directory / MANIFEST),
                status=status,
                report=report,
                run_id=self.manifest.run_id,
                rankings=self.manifest.rankings,
            )
            if self.target.exists():  # without a row: left by a crash between the rename and the commit
                shutil.rmtree(self.target)
            rename_durably(self.directory, self.target)
        return version


@contextmanager
def write_candidate(
    db: Database,
    home: Home,
    base: Base,
    *,
    adapter_dir: Path,
    run: Run | None,
    parent: str,
    canary: Sequence[Canary],
    snapshot_sha256: str | None,
    rankings: int,
    rewards: Sequence[RewardRecord] = (),
) -> Iterator[Candidate]:
    """Writes the PEFT adapter in `adapter_dir` down as the next version, for `appear` to show.

    Whoever holds the lease is the only one who makes versions, so the name is known before it is taken.
    Raises Refused where the adapter is damaged, foreign to `base` or empty. What has not appeared by the end
    of the block is gone, and so is what a killed trainer left there.
    """
    name = versions.next_name(db)
    for left in home.adapters.glob(f"{_UNFINISHED}*"):
        if left.stat().st_mtime < time.time() - _FORGOTTEN:
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=home.adapters) as temporary:
        directory = Path(temporary) / name
        _copy(adapter_dir, directory)
        manifest = Manifest(
            name=name,
            parent=parent,
            base_model=base.name,
            base_sha256=base.sha256,
            template_sha256=base.format.sha256,
            files=adapters.hash_files(directory),
            run_id=run.id if run else None,
            snapshot_sha256=snapshot_sha256,
            rankings=rankings,
            delta_norm=adapters.measure_delta(directory),
            canary=list(canary),
            created_at=time.time(),
            rewards=list(rewards),
        )
        write_manifest(directory, manifest)
        verify_for(base, directory)
        force_folder_to_disk(directory)
        yield Candidate(db, run, manifest, directory, home.adapters / name)


def verify_for(base: Base, directory: Path) -> Manifest:
    """`adapters.verify` against `base`; the gate's first question and the last one before a rename."""
    return adapters.verify(
        directory,
        base_sha256=base.sha256,
        template_sha256=base.format.sha256,
        model_config=base.config,
    )


def check_files(home: Home, version: Version, remedy: str = "publish another version") -> None:
    """Refuses a version whose files are no longer those that were published (the base has none)."""
    if not version.path:
        return
    directory = home.adapters / version.path
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise Refused(f"The files of version {version.name!r} are gone - {remedy}.")
    is_whole = hash_file(manifest) == version.sha256 and all(
        (directory / file).is_file() and hash_file(directory / file) == sha256
        for file, sha256 in read_manifest(directory).files.items()
    )
    if not is_whole:
        raise Refused(f"The files of version {version.name!r} are damaged - {remedy}.")


def _copy(source: Path, directory: Path) -> None:
    directory.mkdir()
    for file in ADAPTER_FILES:
        if not (source / file).is_file():
            raise Refused(f"{str(source)!r} has no {file} - give the folder of a PEFT adapter.")
        shutil.copyfile(source / file, directory / file)
