"""A version as vLLM servers hold it: what it is called there, and by what it is recognised.

A version is loaded under a name that contains a hash of its files, so that a name never means two things:
vLLM answers an adapter that was replaced under its old name from the old one's prefix cache, and after a
restart of ours what is found on a server under the name is what the name says.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatbot.adapters import hash_files
from chatbot.manifest import MANIFEST, Canary, read_manifest


@dataclass(frozen=True)
class Edition:
    """A version as the servers hold it."""

    version: str
    tag: str
    """What it is called there."""
    directory: Path
    canary: Sequence[Canary]

    @staticmethod
    def of(version: str, directory: Path) -> "Edition":
        """From an adapter directory; one without a manifest was made by hand and has no canaries."""
        digest = hashlib.sha256("".join(hash_files(directory).values()).encode()).hexdigest()
        has_manifest = (directory / MANIFEST).is_file()
        canary = read_manifest(directory).canary if has_manifest else []
        return Edition(version, f"{version}-{digest[:12]}", directory, canary)
