"""Files and folders that are there whole or not at all, whatever happens while they are written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import Any

from data.errors import Refused


@contextmanager
def file_to_be(target: Path) -> Iterator[Path]:
    """An empty file to fill, which then becomes `target`; where the block raises, `target` stays untouched.

    Raises Refused where a person named a place that cannot be written.
    """
    partial = target.parent / f"{target.name}.part"
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        partial.write_bytes(b"")
        try:
            yield partial
            replace_durably(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"{str(target)!r} cannot be written ({error.strerror}) - choose another.") from error


def write_json(path: Path, value: Any) -> None:
    """Replace the JSON file at `path`; its folder is made where it is not there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    replace_durably(part, path)


def replace_durably(partial: Path, target: Path) -> None:
    """Renames a finished file into place, so that a power cut leaves the old or the new one, whole."""
    force_to_disk(partial)
    os.replace(partial, target)
    force_to_disk(target.parent)


def make_it_appear(unfinished: Path, target: Path) -> None:
    """Rename the folder `unfinished` to `target`, once all that lies in it is on the disk."""
    force_folder_to_disk(unfinished)
    rename_durably(unfinished, target)


def rename_durably(folder: Path, target: Path) -> None:
    """Rename a folder whose files are on the disk, so that a power cut leaves the old or the new name."""
    os.rename(folder, target)
    force_to_disk(target.parent)


def force_folder_to_disk(folder: Path) -> None:
    """fsync of a folder and of every file in it."""
    for path in (*folder.iterdir(), folder):
        force_to_disk(path)


def force_to_disk(path: Path) -> None:
    """fsync of a file or of a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
