"""Versions that change under running streams, and what every answer should have been.

`stream` keeps so many greedy streams busy and notes when each token could first be seen; `swap` meanwhile
loads, proves and serves one version after the other, each under a name of its own; `mistakes` holds every
answer against what its version says when nobody else is there. All of it through the engine's public
interface. For swaps.py and for tests/test_swaps.py.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from chatbot.chatformat import Messages
from chatbot.generation import Generation
from chatbot.interface import AnyEngine
from data.records import BASE_VERSION, Sampling

LOOK_SECONDS = 0.001
PATIENCE_SECONDS = 300.0
"""The longest that an answer, or the end of an old version, may take."""
TIE = 1e-3
"""Two tokens whose logits differ by less may change places with the shape of a batch, even in float32."""
CANARY_TIE = 1e-4
"""Nats a token by which a version's own log-probability may move between two loads, in float32."""
MOST_VERSIONS = 3
"""The base, what serves, and one that is drained; only then is the next one loaded."""


@dataclass(frozen=True)
class Reference:
    """What one adapter says, one prompt at a time with nobody else there; None is the base."""

    adapter: Path | None
    prompts: list[list[int]]
    replies: list[list[int]]
    logprob: float
    """Of the first reply, a token: by this a version proves itself when it is loaded again."""


@dataclass(frozen=True)
class Answer:
    """One reply of a stream."""

    prompt: int
    """Which of the prompts."""
    version: str
    finish_reason: str
    token_ids: list[int]
    gaps: list[float]
    """Seconds between tokens, as far as they could be told apart."""
    overtaken: bool
    """Another version served by the time it ended."""


@dataclass(frozen=True)
class Swap:
    """One change of version: seconds of its parts, and the process's memory when the last one had settled."""

    version: str
    reference: int
    load: float
    proof: float
    serve: float
    memory: int


@dataclass
class _Stream:
    """One of those who ask without end."""

    asked: int
    """How many prompts into the round."""
    generation: Generation | None = None
    seen: int = 0
    at: float = 0.0
    gaps: list[float] = field(default_factory=list)


def reference(
    make: Callable[[], AnyEngine], adapter: Path | None, prompts: Sequence[Messages], sampling: Sampling
) -> Reference:
    """Ask a version every prompt alone, in an engine of its own: nothing of another version can be in it."""
    engine = make()
    engine.start()
    version = "alone" if adapter else BASE_VERSION
    engine.load(version, adapter)
    asked = []
    for messages in prompts:
        generation = engine.submit(messages, sampling=sampling, version=version)
        assert generation.wait(PATIENCE_SECONDS), "a version does not answer"
        asked.append(generation)
    replies = [generation.replies[0].token_ids for generation in asked]
    first = asked[0].prompt
    logprob = engine.mean_logprob(version, first + replies[0], len(first))
    engine.close()
    return Reference(adapter, [generation.prompt for generation in asked], replies, logprob)


def stream(
    engine: AnyEngine,
    prompts: Sequence[Messages],
    sampling: Sampling,
    *,
    streams: int,
    until: Callable[[], bool],
    patience: float = PATIENCE_SECONDS,
) -> list[Answer]:
    """Keep `streams` streams busy until `until()`, then let each end; every answer, in order of its end."""
    answers: list[Answer] = []
    running = [_Stream(asked) for asked in range(streams)]
    while running:
        for one in list(running):
            if one.generation is not None:
                _look(one)
                if time.monotonic() - one.generation.submitted_at > patience:
                    one.generation.stop()
                if one.generation.is_done:
                    answers.append(_answer(engine, one, len(prompts)))
                    one.generation = None
                    one.asked += streams
            if one.generation is None and until():
                running.remove(one)
            elif one.generation is None:
                messages = prompts[one.asked % len(prompts)]
                one.generation = engine.submit(messages, sampling=sampling)
                one.seen, one.gaps = 0, []
        time.sleep(LOOK_SECONDS)
    return answers


def _look(one: _Stream) -> None:
    """Note what has come since the last look."""
    assert one.generation is not None, "only who has asked is looked at"
    tokens, now = one.generation.replies[0].tokens, time.monotonic()
    if tokens > one.seen:
        if one.seen:
            one.gaps.append(now - one.at)
        one.seen, one.at = tokens, now


def _answer(engine: AnyEngine, one: _Stream, prompts: int) -> Answer:
    generation = one.generation
    assert generation is not None, "only who has asked is answered"
    reply = generation.replies[0]
    return Answer(
        one.asked % prompts,
        generation.version,
        str(reply.finish_reason),
        reply.token_ids,
        one.gaps,
        generation.version != engine.version,
    )


def swap(
    engine: AnyEngine,
    references: Sequence[Reference],
    count: int,
    *,
    pause: float,
    patience: float = PATIENCE_SECONDS,
) -> list[Swap]:
    """Change `count` times to the next reference in turn, `pause` seconds apart, each time under a new name.

    What the follower does at every publication: load, compare a log-probability, serve. Raises
    AssertionError where a version computes something else than alone, or an old one is never let go.
    """
    swaps: list[Swap] = []
    process = psutil.Process()
    for number in range(1, count + 1):
        time.sleep(pause)
        deadline = time.monotonic() + patience
        while len(known := engine.known_versions) > MOST_VERSIONS - 1:
            assert time.monotonic() < deadline, f"still there: {known}"
            time.sleep(LOOK_SECONDS)
        memory = process.memory_info().rss
        which = number % len(references)
        wanted = references[which]
        name = f"v{number:06d}" if wanted.adapter else BASE_VERSION
        times = [time.monotonic()]
        engine.load(name, wanted.adapter)
        times.append(time.monotonic())
        prompt, reply = wanted.prompts[0], wanted.replies[0]
        off = abs(engine.mean_logprob(name, prompt + reply, len(prompt)) - wanted.logprob)
        assert off <= CANARY_TIE, f"{name} is {off} nats a token off"
        times.append(time.monotonic())
        engine.serve(name)
        times.append(time.monotonic())
        load, proof, serve = (end - start for start, end in pairwise(times))
        swaps.append(Swap(name, which, load, proof, serve, memory))
    return swaps


@dataclass(frozen=True)
class Mistakes:
    """Answers that are not what their version says."""

    failed: list[Answer]
    """That ended neither by themselves nor by their length."""
    wrong: list[Answer]
    ties: list[Answer]
    """That left the reference where its two best tokens were within TIE of each other: no mistakes."""


def mistakes(
    engine: AnyEngine,
    references: Sequence[Reference],
    swaps: Sequence[Swap],
    answers: Sequence[Answer],
    *,
    is_exact: bool = True,
) -> Mistakes:
    """Hold every answer against the reference of the version that is stamped on it.

    Where the format is not exact, but rounds by the shape of a batch, only failures count.
    """
    made_of = {BASE_VERSION: next(i for i, one in enumerate(references) if one.adapter is None)}
    made_of |= {one.version: one.reference for one in swaps}
    found = Mistakes([], [], [])
    for answer in answers:
        wanted = references[made_of[answer.version]]
        if answer.finish_reason not in ("stop", "length"):
            found.failed.append(answer)
        elif is_exact and answer.token_ids != wanted.replies[answer.prompt]:
            (found.ties if _is_tie(engine, wanted, answer) else found.wrong).append(answer)
    return found


def _is_tie(engine: AnyEngine, wanted: Reference, answer: Answer) -> bool:
    """Whether the first token that differs was as good as the reference's."""
    expected, said = wanted.replies[answer.prompt], answer.token_ids
    at = next((i for i, (a, b) in enumerate(zip(expected, said, strict=False)) if a != b), None)
    if at is None:  # one goes on where the other ended
        return False
    version = "tie" if wanted.adapter else BASE_VERSION
    engine.load(version, wanted.adapter)
    before = [*wanted.prompts[answer.prompt], *expected[:at]]
    both = [engine.mean_logprob(version, [*before, row[at]], len(before)) for row in (expected, said)]
    engine.unload(version)
    return abs(both[0] - both[1]) <= TIE


def growth(swaps: Sequence[Swap]) -> float:
    """How much more memory the last tenth of the swaps left than the second tenth, as a share."""
    tenth = max(1, len(swaps) // 10)
    early, late = swaps[tenth : 2 * tenth], swaps[-tenth:]
    before, after = (statistics.median(one.memory for one in part) for part in (early, late))
    return after / before - 1
