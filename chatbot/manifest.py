"""The manifest of a version: where it comes from, and what its files and its reward models must be."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, NotRequired, TypedDict

from data.errors import Refused
from data.text import from_json

MANIFEST = "manifest.json"


class Canary(TypedDict):
    """A prompt with a reply and what the trainer's build said of it, to compare with the server's."""

    ids: list[int]
    reply_start: int
    logprob: float
    four_bit: NotRequired[bool]
    """Whether that build's base was in four bits; left out, it was not."""
    bfloat16: NotRequired[bool]
    """Whether that build had no room for float32; left out, it had."""


class RewardRecord(TypedDict):
    """A reward model that the version was made with; it lies in the run's folder under its name."""

    name: str
    files: dict[str, str]
    """sha256 by file name."""
    mean: float
    std: float
    """Of the raw scores of the reference's replies: they come to score 0 on average with a spread of 1."""
    usual_length: float
    """The mean of log n over the same replies, n in tokens."""
    length: float
    """What is added to a raw score for each log n above the usual: 0 or less."""


@dataclass(frozen=True)
class Manifest:
    """Where a version comes from and what its files must be."""

    name: str
    parent: str
    base_model: str
    base_sha256: str
    template_sha256: str
    files: dict[str, str]
    """sha256 by file name."""
    run_id: str | None
    snapshot_sha256: str | None
    rankings: int
    delta_norm: float
    """Frobenius norm of all that the adapter adds to the base's weights."""
    canary: list[Canary]
    created_at: float
    rewards: list[RewardRecord] = field(default_factory=list)
    """The ensemble in order, then the judge; none where no rankings taught it."""


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into the version's directory."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """The manifest, with every field of the right type; Refused otherwise."""
    row = read_json(directory, MANIFEST)
    names = {one.name for one in fields(Manifest)}
    if set(row) | {"rewards"} != names:
        wrong = ", ".join(sorted(names.symmetric_difference(row)))
        refuse(directory, f"its {MANIFEST} lacks or adds fields: {wrong}")
    manifest = Manifest(**row)
    if not (
        _are_texts(manifest)
        and _are_numbers(manifest)
        and _are_canaries(manifest.canary)
        and _are_rewards(manifest.rewards)
    ):
        refuse(directory, f"its {MANIFEST} has fields of the wrong type")
    if manifest.name != directory.name:
        refuse(directory, f"its {MANIFEST} is that of {manifest.name!r}")
    return manifest


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A file of a version directory; Refused where it is no JSON object."""
    try:
        row = from_json((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refusal(directory, f"its file {name!r} cannot be read ({error})") from error
    if not isinstance(row, dict):
        refuse(directory, f"its file {name!r} is not a JSON object")
    return row


def _are_texts(manifest: Manifest) -> bool:
    required = (manifest.name, manifest.parent, manifest.base_model)
    hashes = (manifest.base_sha256, manifest.template_sha256)
    optional = (manifest.run_id, manifest.snapshot_sha256)
    files = manifest.files.values() if isinstance(manifest.files, dict) else (None,)
    return all(isinstance(text, str) for text in (*required, *hashes, *files)) and all(
        text is None or isinstance(text, str) for text in optional
    )


def _are_numbers(manifest: Manifest) -> bool:
    numbers = (manifest.rankings, manifest.delta_norm, manifest.created_at)
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def _are_canaries(rows: Any) -> bool:
    """A list of prompts with a reply: token ids, where the reply starts, its log-probability."""
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and set(row) - {"four_bit", "bfloat16"} == {"ids", "reply_start", "logprob"}
        and isinstance(row["ids"], list)
        and all(isinstance(token, int) for token in row["ids"])
        and isinstance(row["reply_start"], int)
        and 0 < row["reply_start"] < len(row["ids"])
        and isinstance(row["logprob"], int | float)
        and all(isinstance(row.get(name, False), bool) for name in ("four_bit", "bfloat16"))
        for row in rows
    )


def _are_rewards(rows: Any) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and set(row) == set(RewardRecord.__annotations__)
        and isinstance(row["name"], str)
        and isinstance(row["files"], dict)
        and all(
            isinstance(row[key], int | float) and math.isfinite(row[key])
            for key in set(row) - {"name", "files"}
        )
        for row in rows
    )


def refusal(directory: Path, fact: str) -> Refused:
    """Why a version is not loaded, and what to do."""
    return Refused(
        f"Version {directory.name!r} is not loaded: {fact} - what serves stays; "
        'publish another version, or go back with "trainer rollback".'
    )


def refuse(directory: Path, fact: str) -> NoReturn:
    """Raises `refusal`."""
    raise refusal(directory, fact)
