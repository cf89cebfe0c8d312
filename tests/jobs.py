"""Jobs for runners, and requests in token ids for engines, for tests."""

from collections.abc import Sequence

from chatbot.chatformat import FittedPrompt
from chatbot.generation import Asked, Generation
from chatbot.interface import AnyEngine
from chatbot.sampling import PlainJob, Row
from data.records import Sampling


def a_job(prompt: list[int], seeds: Sequence[int], sampling: Sampling) -> PlainJob:
    """A row for each seed."""
    return PlainJob(prompt, [Row(seed) for seed in seeds], sampling)


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
