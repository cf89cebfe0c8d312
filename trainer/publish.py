"""A version is published whole or not at all: an immutable directory, then one row.

The candidate's files are copied into a temporary directory beside the versions, hashed, described by a
manifest and forced to disk; one rename makes the version appear. Only then does its row, so that a crash
leaves at most a directory without a row, which the next publication of that name removes. Which version
*serves* is another row (data/versions.py): nothing here changes what anybody is answered by.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
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
from data.files import make_it_appear
from data.home import Home
from data.records import Run, Version, VersionStatus


def publish_candidate(
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
    report: dict[str, Any],
    status: VersionStatus,
    rewards: Sequence[RewardRecord] = (),
) -> Version:
    """Writes the PEFT adapter in `adapter_dir` as the next version and returns its row.

    A refused candidate becomes a version too: what was refused, and why, can be looked at later.
    Raises Refused, leaving nothing behind, where the adapter is damaged, foreign to `base` or empty.
    """
    name = versions.next_name(db)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=home.adapters) as temporary:
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
        target = home.adapters / name
        if target.exists():  # without a row: left by a crash between the rename and the row
            shutil.rmtree(target)
        make_it_appear(directory, target)
    return versions.add(
        db,
        name=name,
        parent=parent,
        base_model=base.name,
        base_sha256=base.sha256,
        path=name,
        sha256=hash_file(home.adapters / name / MANIFEST),
        status=status,
        report=report,
        run_id=manifest.run_id,
        rankings=rankings,
    )


def verify_for(base: Base, directory: Path) -> Manifest:
    """`adapters.verify` against `base`; the gate's first question and the last one before a rename."""
    return adapters.verify(
        directory,
        base_sha256=base.sha256,
        template_sha256=base.format.sha256,
        model_config=base.config,
    )


def check_files(home: Home, version: Version) -> None:
    """Refuses a version whose files are no longer those that were published (the base has none)."""
    if not version.path:
        return
    directory = home.adapters / version.path
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise Refused(f"The files of version {version.name!r} are gone - publish another version.")
    is_whole = hash_file(manifest) == version.sha256 and all(
        (directory / file).is_file() and hash_file(directory / file) == sha256
        for file, sha256 in read_manifest(directory).files.items()
    )
    if not is_whole:
        raise Refused(f"The files of version {version.name!r} are damaged - publish another version.")


def _copy(source: Path, directory: Path) -> None:
    directory.mkdir()
    for file in ADAPTER_FILES:
        if not (source / file).is_file():
            raise Refused(f"{str(source)!r} has no {file} - give the folder of a PEFT adapter.")
        shutil.copyfile(source / file, directory / file)
