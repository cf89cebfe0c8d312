"""Files and folders that are there whole or not at all, whatever happens while they are written.

What holds people's words is readable by its owner only: other accounts of the machine are not the chat's.
"""

import gzip
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.errors import Busy, Problem, Refused, no_file

_OWNER_ONLY = 0o600
_LEAST_ROOM = 2**16
_GZIP = b"\x1f\x8b"
_LONGEST_LINE = 2**26
"""In bytes: room for two thousand messages of 32,000 characters. A line might else fill the memory, however
small the gzip'd file is."""


def private_file(path: Path) -> Path:
    """The file at `path`, made where it is missing, as its owner's alone. Where it cannot be made, `path`.

    One that root makes belongs to the account that owns the folder: the server must be able to open it.
    """
    with suppress(OSError):
        path.touch(_OWNER_ONLY, exist_ok=False)
        give_to_owner_of_folder(path)
    keep_private(path)
    return path


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file that somebody named, as they come; one that is gzip'd is told by how it begins.

    NotFound where there is none, Refused where it cannot be read, damaged or cut off, or where a line is so
    long that it can be no row.
    """
    try:
        with path.open("rb") as file:
            source = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(_GZIP) else file
            while line := source.readline(_LONGEST_LINE + 1):
                if len(line) > _LONGEST_LINE:
                    raise Refused(
                        f"{str(path)!r} has a line of more than {_LONGEST_LINE >> 20} MiB - "
                        "write one row a line."
                    )
                yield line
    except FileNotFoundError:
        raise no_file(path) from None
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise Refused(
            f"{str(path)!r} cannot be read ({why}) - give a whole file of JSONL, plain or gzip'd."
        ) from error


def keep_private(path: Path) -> None:
    """Nobody but its owner reads a file or enters a folder any more; one of somebody else stays as it is."""
    with suppress(OSError):
        path.chmod(path.stat().st_mode & stat.S_IRWXU)


def give_to_owner_of_folder(path: Path) -> None:
    """What root makes in a home belongs to whose home it is, who could not use it otherwise."""
    if os.geteuid() == 0:
        above = path.parent.stat()
        os.chown(path, above.st_uid, above.st_gid, follow_symlinks=False)


@contextmanager
def file_to_be(target: Path) -> Iterator[Path]:
    """An empty file to fill, which then becomes `target`, its owner's alone; where the block raises, `target`
    stays untouched.

    Raises Refused where a person named a place that cannot be written.
    """
    partial = target.parent / f"{target.name}.{os.getpid()}.part"
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        partial.unlink(missing_ok=True)
        partial.touch(_OWNER_ONLY)
        give_to_owner_of_folder(partial)
        try:
            yield partial
            replace_durably(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"{str(target)!r} cannot be written ({error.strerror}) - choose another.") from error


@contextmanager
def lock_at(path: Path, seconds: float, busy: str) -> Iterator[None]:
    """Held by one process at a time: Busy with the sentence `busy` for who waited so many seconds in vain.

    Raises Problem where this account may not use the file, which stays when the lock is given back.
    """
    lock = FileLock(private_file(path), timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(busy) from None
    except OSError as error:
        raise Problem(
            f"{str(path)!r} cannot be locked ({error.strerror}) - check that this account may write it."
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_disk_full(folder: Path) -> bool:
    """Whether there is no room for as much as the smallest files of a program."""
    return shutil.disk_usage(folder).free < _LEAST_ROOM


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
