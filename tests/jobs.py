"""Jobs for runners, and requests in token ids for engines, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.chatformat import FittedPrompt
from chatbot.generation import Asked, Generation
from chatbot.interface import AnyEngine
from chatbot.sampling import Row
from data.records import Sampling


@dataclass(frozen=True)
class TestJob:
    """A prompt and the rows that reply to it."""

    __test__ = False  # pytest would collect it

    prompt: list[int]
    rows: list[Row]
    sampling: Sampling


def a_job(prompt: list[int], seeds: Sequence[int], sampling: Sampling) -> TestJob:
    """A row for each seed."""
    return TestJob(prompt, [Row(seed) for seed in seeds], sampling)


def ask_tokens(
    engine: AnyEngine,
    prompt: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    version: str | None = None,
) -> Generation:
    """Queue a prompt in token ids, with a reply for each seed."""
    asked = Asked(FittedPrompt(list(prompt), 0), sampling, seeds, kind="rollout")
    return engine.accept(asked, version)
