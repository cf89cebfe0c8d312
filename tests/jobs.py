"""Jobs for runners, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass

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
