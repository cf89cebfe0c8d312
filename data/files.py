"""Files and folders that are there whole or not at all, whatever happens while they are written."""

import json
import os
from pathlib import Path
from typing import Any


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
