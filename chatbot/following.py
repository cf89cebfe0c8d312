"""The server's eye on the database: when another version is published, load it and let it serve.

The wire between trainer and server is one row, `serving`. A changed row is followed in four steps: verify
the files, build the version beside the old one, compare its log-probabilities with those in its manifest,
move the pointer. If any of them fails, what serves stays, the failure is logged once, and the operator's page
shows it as long as it lasts (`Answering.problem`).
"""

import logging
import time
from dataclasses import dataclass

from chatbot import adapters
from chatbot.canary import too_far_off
from chatbot.interface import AnyEngine
from chatbot.manifest import MANIFEST, Manifest, hash_file
from chatbot.repeating import Repeating
from data import versions
from data.database import Database
from data.errors import Problem, Refused
from data.home import Home
from data.records import BASE_VERSION

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""A version that could not be loaded is tried again after this: memory or a disk may have been short. Then
after twice as long each time, as building it takes memory and time from the others. A new publication is
tried at once, also one of the same version."""
MOST_RETRY_SECONDS = 1800.0


@dataclass(frozen=True)
class Answering:
    """What the engine answers with at this moment, which need not be what the database says."""

    version: str
    problem: str | None = None
    """Why the version that should serve does not, as a sentence; None when it does, or was not tried yet."""


class Follower:
    """Keeps an engine serving what the database says."""

    def __init__(self, db: Database, home: Home, engine: AnyEngine, *, interval: float = 0.5) -> None:
        self._db = db
        self._home = home
        self._engine = engine
        self._repeating = Repeating(self.follow_once, interval, "following", is_urgent=False)
        self._tried: tuple[str, float] | None = None
        """The publication that was tried last, a version and when it was chosen; None when it serves."""
        self._retry_at = 0.0
        self._retry_after = RETRY_SECONDS
        self.problem: str | None = None
        """As in Answering."""

    def answering(self) -> Answering:
        """Which version answers, and what keeps another from it."""
        return Answering(self._engine.version, self.problem)

    def start(self) -> None:
        self._repeating.start()

    def close(self, patience: float | None = None) -> None:
        """Look no more. A version that is being built is waited for, at most so many seconds: nothing is lost
        with it, but a process that does not end by `os._exit` must not leave it computing."""
        self._repeating.close(patience)

    def follow_once(self) -> bool:
        """Look, and change over if needed; True when the engine serves what the database says."""
        serving = versions.serving(self._db)
        wanted, publication = serving.current, (serving.current, serving.changed_at)
        if wanted == self._engine.version:
            self.problem, self._tried = None, None
            return True
        if publication != self._tried:
            self.problem, self._tried, self._retry_after = None, publication, RETRY_SECONDS
        elif time.monotonic() < self._retry_at:
            return False
        try:
            load_verified(self._db, self._home, self._engine, wanted)
            if versions.serving(self._db).current != wanted:  # rolled back, or followed, while it was built
                self._engine.unload(wanted)
                return False
            self._engine.serve(wanted)
        except Exception as error:
            self._engine.unload(wanted)
            self._keep_what_serves(wanted, error)
            return False
        log.info("Serving %s.", wanted)
        return True

    def _keep_what_serves(self, wanted: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        problem = (
            f"{wanted} does not serve. When it was last tried: {reason.rstrip('.')}. "
            f"{self._engine.version} goes on answering, and {wanted} is tried again."
        )
        if problem != self.problem:
            log.error(problem, exc_info=None if isinstance(error, Problem) else error)
        self.problem = problem
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(2 * self._retry_after, MOST_RETRY_SECONDS)


def load_verified(db: Database, home: Home, engine: AnyEngine, name: str) -> None:
    """Load version `name` into `engine` after checking its files and what it computes.

    Raises NotFound for an unknown version and Refused for a damaged one or one of another base.
    """
    version = versions.get(db, name)
    if name == BASE_VERSION:
        return
    base = engine.base
    directory = home.adapters / version.path
    manifest_file = directory / MANIFEST
    if manifest_file.is_file() and hash_file(manifest_file) != version.sha256:
        raise Refused(f"The manifest of version {name!r} is not the one published - publish another version.")
    manifest = adapters.verify(
        directory, base_sha256=base.sha256, template_sha256=base.format.sha256, model_config=base.config
    )
    engine.load(name, directory)
    try:
        _check_canary(engine, name, manifest)
    except Exception:
        engine.unload(name)
        raise


def _check_canary(engine: AnyEngine, name: str, manifest: Manifest) -> None:
    """Raises Refused where the version computes something else here than in the trainer's build."""
    if not manifest.canary:
        return
    logprobs = [engine.mean_logprob(name, canary["ids"], canary["reply_start"]) for canary in manifest.canary]
    if off := too_far_off(manifest.canary, logprobs, engine.dtype, four_bit=engine.four_bit):
        raise Refused(
            f"Version {name!r} computes other log-probabilities here than where it was trained "
            f"({off}) - train it again on this machine."
        )
