"""Versions change under running streams: every answer is that of the version it was begun with, to the token.

A short run of what benchmarks/swaps.py does a hundred times on a full-size model.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import swapping
from benchmarks.swapping import Answer, Reference, Swap, growth, mistakes, reference, stream, swap
from chatbot.basemodel import Base
from chatbot.chatformat import Messages
from chatbot.engine import Engine
from chatbot.generation import Generation
from chatbot.interface import AnyEngine
from data.records import Sampling
from tests.adapter_files import write_adapter
from tests.waiting import until

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello.", "Count to ten.", "x" * 90)]
GREEDY = Sampling(temperature=0, max_new_tokens=80)
PATIENCE = 30.0


@pytest.fixture
def references(tiny_base: Base, tmp_path: Path) -> list[Reference]:
    """What the base and three adapters say, each in an engine of its own."""
    adapters = [
        write_adapter(tmp_path / f"{seed}", tiny_base.config, seed=seed, size=0.5) for seed in range(3)
    ]
    make = partial(Engine, tiny_base, precision="float32")
    return [reference(make, adapter, PROMPTS, GREEDY) for adapter in (None, *adapters)]


def let_each_version_meet_a_stream(engine: AnyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version serves from now on until a stream has begun with it, however slow the machine."""
    submit, serve, begun = engine.submit, engine.serve, set[str]()

    def note(messages: Messages, *, sampling: Sampling) -> Generation:
        generation = submit(messages, sampling=sampling)
        begun.add(generation.version)
        return generation

    def serve_until_met(version: str) -> None:
        begun.discard(version)  # the base serves again and again
        serve(version)
        until(lambda: version in begun)

    monkeypatch.setattr(engine, "submit", note)
    monkeypatch.setattr(engine, "serve", serve_until_met)


@pytest.fixture
def run(
    engine: Engine, references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Swap], list[Answer]]:
    """Twelve swaps under eight streams."""
    let_each_version_meet_a_stream(engine, monkeypatch)
    with ThreadPoolExecutor(1) as beside:
        swaps = beside.submit(swap, engine, references, 12, pause=0.05, patience=PATIENCE)
        answers = stream(engine, PROMPTS, GREEDY, streams=8, until=swaps.done, patience=PATIENCE)
        return swaps.result(), answers


def test_every_answer_under_swaps_is_that_of_its_version(
    engine: Engine, references: list[Reference], run: tuple[list[Swap], list[Answer]]
) -> None:
    swaps, answers = run
    found = mistakes(engine, references, swaps, answers)
    assert (found.failed, found.wrong) == ([], [])
    served = {one.version for one in swaps}
    assert served <= {answer.version for answer in answers}
    assert sum(answer.overtaken for answer in answers) >= len(swaps) // 2
    # Nothing is left of the versions that served before.
    assert engine.version == swaps[-1].version
    until(lambda: set(engine.known_versions) == {"base", engine.version})
    until(lambda: engine.load_now == (0, 0))


def answer_of(references: list[Reference], which: int, version: str) -> Answer:
    """What adapter `which` says to the first prompt, with `version` stamped on it."""
    return Answer(0, version, "stop", references[which].replies[0], [], False)


def test_an_answer_of_another_version_is_found(engine: Engine, references: list[Reference]) -> None:
    swaps = [Swap(f"v00000{i}", i, 0.1, 0.1, 0.1, 1000) for i in (1, 2)]
    good = [answer_of(references, 0, "base"), answer_of(references, 1, "v000001")]
    foreign = answer_of(references, 1, "v000002")
    cut = replace(good[1], token_ids=good[1].token_ids[:-1])
    failed = replace(good[1], finish_reason="failed")
    found = mistakes(engine, references, swaps, [*good, foreign, cut, failed])
    assert (found.wrong, found.failed, found.ties) == ([foreign, cut], [failed], [])


def test_a_tie_of_two_tokens_is_no_mistake(
    engine: Engine, references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swapping, "TIE", 1000.0)  # so that any two tokens tie
    swaps = [Swap("v000001", 1, 0.1, 0.1, 0.1, 1000)]
    foreign = answer_of(references, 2, "v000001")
    found = mistakes(engine, references, swaps, [foreign])
    assert (found.ties, found.wrong) == ([foreign], [])
    assert engine.known_versions == ["base"]


def test_memory_that_grows_with_the_swaps_is_seen() -> None:
    flat = [Swap("v000001", 0, 0.1, 0.1, 0.1, memory=1000) for _ in range(100)]
    leaky = [replace(one, memory=1000 + number) for number, one in enumerate(flat)]
    assert growth(flat) == 0
    assert 0.05 < growth(leaky) < 0.1
