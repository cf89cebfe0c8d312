"""Several vLLM servers that serve one base model in the same versions.

A server is up when it has shown, by what it computes, that it holds what is here: the same base
(base_canary.py), and every version with the log-probabilities of its manifest. Only those are asked. One that
stops answering is taken out at once and looked after; when it is back, it gets the versions it missed before
it serves.

To the servers the base is an adapter too, one that changes nothing (null_adapter.py).

All of this runs in one event loop, that of remote.py. Versions come and go one after the other.
"""

import asyncio
import copy
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from chatbot.base_canary import base_canaries, text_ids
from chatbot.basemodel import Base
from chatbot.canary import CANARY_TOLERANCE, too_far_off
from chatbot.edition import Edition
from chatbot.null_adapter import null_adapter
from chatbot.replica import Replica
from chatbot.vllm import Failed, Gone, Server
from data.errors import Problem, Refused, Unavailable
from data.records import BASE_VERSION

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at a server, up or down."""
REFUSED_SECONDS = 10.0
"""The same for one that is there but does not fit."""
FAILURES = 3
"""Requests that a server may fail at one after the other, though it says that it is well."""
LAST_SECONDS = 10.0
"""For this long after such a failure it is asked only where no other is up: as it writes nothing, it would
otherwise always be the one with the fewest replies."""


class Replicas:
    """The servers, and the versions they hold. Belongs to one event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        base: Base,
        shared: Path,
        *,
        dtype: torch.dtype,
        four_bit: bool,
        prefix: str,
    ) -> None:
        """`shared` is a directory that the servers see; `dtype` and `four_bit` say how they compute.

        dtype: bfloat16 where nobody knows, whatever is computed in here: no server says it, and most are
        started with that. Its bound of canary.py still tells noise of a twentieth of the weights' spread
        (TEXT of base_canary.py).
        prefix: what the names of the versions begin with that come and go here (see `_clear`).
        """
        self.all = [Replica(Server(url)) for url in urls]
        self.context = base.context
        """The longest sequence that every server takes."""
        self._base = base
        self._dtype = dtype
        self._four_bit = four_bit
        self._shared = shared.absolute()
        self._prefix = prefix
        self._base_logprob: float | None = None
        self._editions = {BASE_VERSION: Edition.of(BASE_VERSION, null_adapter(base, shared))}
        self._changes = asyncio.Lock()

    def read_base(self) -> None:
        """Learn what the base's weights compute, to hold the servers to it. Before `start`; takes seconds the
        first time."""
        edition = self._editions[BASE_VERSION]
        canary = base_canaries(self._base, edition.directory)
        self._editions[BASE_VERSION] = replace(edition, canary=canary)

    @property
    def base(self) -> Base:
        """The base, with the context of the servers where that is shorter than the model's own."""
        if self.context == self._base.context:
            return self._base
        config = copy.deepcopy(self._base.config)
        config.max_position_embeddings = self.context
        return replace(self._base, config=config)

    @property
    def up(self) -> list[Replica]:
        return [replica for replica in self.all if replica.is_up]

    def pick(self, *, but: Collection[Replica] = ()) -> Replica | None:
        """The server that writes the fewest replies; the first among equals, whose cache is the fullest.
        Those that have failed of late come last.

        but: servers that are not wanted.
        """
        now = asyncio.get_running_loop().time()
        usable = (replica for replica in self.up if replica not in but)
        return min(usable, key=lambda replica: (now < replica.last_until, replica.rows), default=None)

    def tag_of(self, version: str) -> str:
        """What `version` is called by the servers."""
        return self._editions[version].tag

    async def start(self, patience: float) -> None:
        """Wait, `patience` seconds long, until a server is up. Raises Problem where none is or none fits."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            told = await asyncio.gather(*(r.server.context() for r in self.all), return_exceptions=True)
            self.context = min([self.context, *(context for context in told if isinstance(context, int))])
            await asyncio.gather(*(self._look_after(replica) for replica in self.all))
            errors = [error for error in told if isinstance(error, Problem)]
            if self.up:
                return
            if not any(isinstance(error, Gone) for error in errors) or loop.time() > deadline:
                reasons = " ".join(replica.problem or "" for replica in self.all)
                raise Problem(f"No engine can be used - start one, or leave --engine out. {reasons}")
            await asyncio.sleep(LOOK_SECONDS)

    async def watch(self, replica: Replica) -> None:
        """Look after one server for ever."""
        while True:
            is_refused = await self._look_after(replica)
            await asyncio.sleep(REFUSED_SECONDS if is_refused else LOOK_SECONDS)

    async def close(self) -> None:
        for replica in self.all:
            replica.is_up = False
            await replica.server.close()

    async def load(self, version: str, directory: Path) -> None:
        """Load a version on every server that is up; Refused, and nowhere loaded, where one refuses it."""
        # In a thread: hashing a large adapter takes a second, in which no token of any reply would be read.
        edition = await asyncio.to_thread(Edition.of, version, directory)
        async with self._changes:
            asked = self.up
            done = await asyncio.gather(*(self._equip(r, edition) for r in asked), return_exceptions=True)
            for replica, error in zip(asked, done, strict=True):
                if isinstance(error, Gone):
                    self.take_out(replica, error)
            refusals = [e for e in done if isinstance(e, BaseException) and not isinstance(e, Gone)]
            if not refusals and self.up:
                self._editions[version] = edition
                return
            await self._discard(edition)
        raise refusals[0] if refusals else Unavailable("No engine answers - try again in a moment.")

    async def unload(self, version: str) -> None:
        """Let a version go everywhere; nobody may be using it."""
        async with self._changes:
            if edition := self._editions.pop(version, None):
                await self._discard(edition)

    async def mean_logprob(self, version: str, ids: Sequence[int], reply_start: int) -> float:
        """As one of the servers computes it: all have shown that they agree."""
        while replica := self.pick():
            try:
                return await replica.server.mean_logprob(self.tag_of(version), ids, reply_start)
            except Gone as error:
                self.take_out(replica, error)
        raise Unavailable("No engine answers - try again in a moment.")

    def take_out(self, replica: Replica, error: Exception) -> None:
        """Ask it no more until it has shown again what it holds. Said once in the log."""
        problem = str(error)
        is_other = not isinstance(error, Gone) and problem != replica.problem
        if replica.is_up or replica.problem is None or is_other:
            log.error("Without an engine: %s", problem)
        replica.is_up, replica.problem = False, problem

    def note_failure(self, replica: Replica, request: object, error: Exception) -> None:
        """Ask it last for a while; take a server out that fails at everything, whatever it says of itself."""
        replica.last_until = asyncio.get_running_loop().time() + LAST_SECONDS
        if isinstance(error, Refused) and not isinstance(error, Failed):
            return  # that may well be the request's fault, at which it must not lose the others
        replica.failed_at.add(request)
        if len(replica.failed_at) >= FAILURES:
            replica.failed_at.clear()
            self.take_out(replica, error)

    async def _look_after(self, replica: Replica) -> bool:
        """Check one that is up, take in one that is back; True where it answers but does not fit."""
        try:
            await (replica.check() if replica.is_up else self._take_in(replica))
        except Problem as error:
            self.take_out(replica, error)
            return not isinstance(error, Gone)
        except Exception as error:  # such as an answer of another shape: it must not end the watch
            log.exception("Looking after %s failed.", replica.server.url)
            self.take_out(replica, error)
            return True
        return False

    async def _take_in(self, replica: Replica) -> None:
        """Bring a server to what the others hold, and see it confirm that. Raises Problem."""
        context = await replica.server.context()
        if context < self.context:
            raise Refused(
                f"{replica.server.url} takes {context:,} tokens where {self.context:,} are promised - "
                f"start it with --max-model-len {self.context}, or start Night School again."
            )
        # Not as a change: a server that is stuck must not keep the others from theirs.
        held = list(self._editions.values())
        await self._clear(replica)
        for edition in held:
            await self._equip(replica, edition)
        await self._confirm_base(replica)
        async with self._changes:
            if held != (now := list(self._editions.values())):  # others changed meanwhile
                await self._clear(replica)
                for edition in now:
                    if edition not in held:
                        await self._equip(replica, edition)
            replica.is_up = True
        if replica.problem:
            log.warning("%s is up.", replica.server.url)
        replica.problem = None

    async def _clear(self, replica: Replica) -> None:
        """Unload what was let go while the server was out, and what a process of ours that was killed left.

        Others may use the server too, so nothing goes but what only this process can have wanted: versions of
        its own kind, by their prefix, from its own directory. A chat server leaves the rollouts of a night
        alone, the trainer the versions that chat, and both those of another installation. The base, which all
        have in common, stays.
        """
        wanted = {edition.tag for edition in self._editions.values()}
        for tag, directory in (await replica.server.loaded()).items():
            if tag.startswith(self._prefix) and directory.parent == self._shared and tag not in wanted:
                await replica.server.unload(tag)

    async def _confirm_base(self, replica: Replica) -> None:
        """Raises Refused where it computes something else than the first server did.

        Not asked where the base's canary has said more already: all but nothing of a base in four bits.
        """
        if self._editions[BASE_VERSION].canary and not self._four_bit:
            return
        logprob = await replica.server.mean_logprob(self.tag_of(BASE_VERSION), *text_ids(self._base))
        if self._base_logprob is None:
            self._base_logprob = logprob
        if not abs(logprob - self._base_logprob) <= 2 * CANARY_TOLERANCE[self._dtype]:  # each may be off
            raise Refused(
                f"{replica.server.url} computes something else than the other engines "
                f"({logprob - self._base_logprob:+.4f} nats a token) - start it with the same model."
            )

    async def _equip(self, replica: Replica, edition: Edition) -> None:
        """Load a version on one server and see it compute what the manifest says. Raises Problem."""
        server = replica.server
        await server.load(edition.tag, edition.directory)
        if not edition.canary:
            return
        logprobs = [
            await server.mean_logprob(edition.tag, one["ids"], one["reply_start"]) for one in edition.canary
        ]
        if off := too_far_off(edition.canary, logprobs, self._dtype, four_bit=self._four_bit):
            if edition.version != BASE_VERSION:  # that changes nothing, and may serve others there
                await server.unload(edition.tag)
            raise Refused(
                f"{server.url} computes other log-probabilities of {edition.version!r} than its weights have "
                f"({off}) - start it with the same base model."
            )

    async def _discard(self, edition: Edition) -> None:
        for replica in self.up:
            try:
                await replica.server.unload(edition.tag)
            except Gone as error:
                self.take_out(replica, error)
