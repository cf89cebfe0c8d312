"""Rankings and nights on the tiny model, for tests, with a taste that a random byte model can be taught."""

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.turns import Turns
from data import runs
from data.database import Database
from data.home import Home
from data.records import Prompt, Run
from trainer.config import RefreshConfig
from trainer.raters import simulate
from trainer.refresh import refresh


def likes_ers(prompt: Sequence[Mapping[str, str]], reply: str) -> float:
    """How often the letters e, r and s stand in the reply."""
    return float(sum(reply.count(letter) for letter in "ers"))


def short_prompts(words: str) -> list[Prompt]:
    """One prompt a word: a tiny model sees no further than that."""
    return [Prompt(({"role": "user", "content": word},), None, "test") for word in words.split()]


PRACTICE = short_prompts(
    "sun moon star tree leaf root bird fish frog wolf bear deer rain snow wind hill lake"
)
JUDGING = short_prompts(
    "bread cheese apple plum pear grape lemon onion garlic pepper salt sugar honey milk tea rice "
    "corn bean pea nut fig date lime mint sage dill leek beet kale chard soup stew pie cake tart jam "
    "oat rye barley wheat red blue green black white brown pink gold one two three four five six "
    "seven eight nine ten north south east west "
)


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> str:
    """A JSONL file of prompts, for `practice` and `judging`."""
    path.write_text("".join(json.dumps({"prompt": list(p.messages)}) + "\n" for p in prompts))
    return str(path)


def tiny_night(home: Home, **changes: Any) -> RefreshConfig:
    """A night of seconds. The learning rates fit a random 2-layer model, nothing else.

    Eight of eight seeds published a version with a KL penalty of this weight: the lower bound of what the
    judge prefers was 69 % or more, and distinct-2 stayed above 71 % of what it was, of which the gate asks
    for half. With a lighter one the replies become the letters that are liked and few others.
    """
    config = RefreshConfig(
        precision="float32",
        max_new_tokens=24,
        rank=8,
        members=2,
        reward_epochs=4,
        reward_lr=5e-3,
        reward_batch=4,
        updates=5,
        prompts_per_update=32,
        minibatch=16,
        ppo_lr=3e-3,
        warmup_updates=1,
        beta=0.2,
        max_kl=30.0,
        gate_prompts=100,
        practice=write_prompts(home.root / "practice.jsonl", PRACTICE),
        judging=write_prompts(home.root / "judging.jsonl", JUDGING),
    )
    return replace(config, **changes)


_FIRST_ID = 3000
"""A test must not hang on the dice."""


@contextmanager
def known_conversations(first: int) -> Iterator[None]:
    """Conversations begun meanwhile are numbered from `first` on.

    Which of them only measure hangs on their ids: the same ids make the same parts every time.
    """
    ids = (f"01900000-0000-7000-8000-{n:012d}" for n in itertools.count(first))
    with patch("data.conversations.new_id", side_effect=ids):
        yield


def rank_by_taste(db: Database, engine: Engine, *, count: int = 100) -> None:
    """`count` turns of what serves, each with four replies, ranked by raters who like e, r and s."""
    random.seed(0)  # the seeds of the replies
    there = len(db.query("SELECT 1 FROM conversations"))
    turns = Turns(db, engine, max_new_tokens=24)
    with known_conversations(_FIRST_ID + there):
        simulate(db, turns, taste=likes_ers, turns_count=count, replies=4, noise=0.0, prompts=PRACTICE)


def a_run(db: Database) -> Run:
    """A run claimed by hand."""
    run = runs.claim(db, f"manual-{len(runs.list_all(db))}", config={})
    assert run is not None, "no other run holds the lease"
    return run


def a_night(db: Database, home: Home, base: Base, **changes: Any) -> Run:
    """Go through a run of its own on the tiny model."""
    config = tiny_night(home, **changes)
    return refresh(db, home, base, config, a_run(db), quiet=True)
