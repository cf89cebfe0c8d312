"""A tiny policy with all its roles, replies to train on, and rankings of text, for tests of the trainer."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chatbot import adapters
from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.comparisons import RankedTurn
from data.records import RankingKind, Sampling
from trainer.config import RefreshConfig
from trainer.forward import Reply
from trainer.members import members_of
from trainer.ppo import train_ppo
from trainer.result import PolicyResult
from trainer.rollout import Roles, Task
from trainer.sampler import MergedSampler
from trainer.telling import Step, nobody

CPU = torch.device("cpu")
END = 2
"""<|im_end|>, the tiny model's end of turn."""


def shake(policy: Policy, name: str, size: float = 0.1, seed: int = 7) -> None:
    """Random numbers where a night's would be: an adapter that changes something, and a taste for words."""
    generator = torch.Generator().manual_seed(seed)
    length = policy.heads[name].length if name in policy.heads else None
    with torch.no_grad():
        for parameter in policy.parameters(name):
            if parameter is not length:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@contextmanager
def turned_round(policy: Policy) -> Iterator[None]:
    """Inside, the reward models and the judge say the opposite of what they have learned."""

    def turn() -> None:
        with torch.no_grad():
            for head in heads:
                for part in (head.weight, head.bias, head.length, head.mean):
                    part.neg_()

    heads = list(policy.heads.values())
    turn()
    yield
    turn()


def delta_norm(policy: Policy, name: str) -> float:
    """Of an adapter, as the manifest of its version would have it."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(name, Path(folder))
        return adapters.measure_delta(Path(folder))


def a_learner(base: Base, *, size: float = 0.1, members: int = 2) -> Policy:
    """A policy wearing `policy`, `members` reward models and `judge`; with `size` 0 they change nothing yet.

    The judge is much like the first reward model, as one trained on the same taste would be.
    """
    policy = Policy(base, device=CPU, dtype=torch.float32)
    policy.add("policy", seed=0, rank=4)
    shake(policy, "policy", size, seed=0)
    for i in range(members):
        policy.add(f"reward-{i}", seed=i + 1, rank=4, with_head=True)
        shake(policy, f"reward-{i}", size, seed=i + 1)
    policy.copy("reward-0", "judge")
    shake(policy, "judge", size / 10, seed=99)
    return policy


def some_replies() -> list[Reply]:
    """Five prompts and replies of different length; the pad token stands in one, two are cut."""
    return [
        Reply([1, 80, 90, 100], [50, 60, 70, END], True),
        Reply([1, 7, 8, 9, 10, 11], [12, END], True),
        Reply([1, 5], [20, 0, 21, 22, 23, 24, 25], False),
        Reply([1, 200, 201], [END], True),
        Reply([1, 30, 31, 32, 33, 34, 35, 36, 37], [38, 39, 40], False),
    ]


def ranked(
    replies: Sequence[str],
    places: Sequence[int],
    kind: RankingKind = "full",
    *,
    conversation: str = "c",
    question: str = "hi",
) -> RankedTurn:
    """A ranking of these replies by one person, with weight 1."""
    count = len(replies)
    return RankedTurn(
        ranking_id=f"r-{conversation}",
        turn_id=f"t-{conversation}",
        conversation_id=conversation,
        person_id="p",
        source="human",
        kind=kind,
        created_at=0.0,
        prompt=({"role": "user", "content": question},),
        replies=tuple(replies),
        places=tuple(places),
        versions=("base",) * count,
        shown=tuple(range(count)),
        cut=(False,) * count,
        weight=1.0,
    )


def shares(turns: Sequence[RankedTurn]) -> dict[str, float]:
    """What each person has of the weight of these rankings."""
    whole = sum(turn.weight for turn in turns)
    held: dict[str, float] = {}
    for turn in turns:
        held[turn.person_id] = held.get(turn.person_id, 0.0) + turn.weight / whole
    return held


def fair_share(turns: Sequence[RankedTurn]) -> float:
    """The most that one of the n people of these rankings may have: 5 %, or 2/n where they are few."""
    people = len({turn.person_id for turn in turns})
    assert people >= 4, "among fewer there is no cap"
    return max(0.05, 2 / people)


def a_config(**changes: Any) -> RefreshConfig:
    """One small update without warm-up, and nothing that would stop a random policy."""
    base = RefreshConfig(
        precision="float32", rank=4, updates=1, prompts_per_update=4, minibatch=4, inner_epochs=1,
        warmup_updates=1, max_kl=1e6, reward_epochs=1,
    )  # fmt: skip
    return replace(base, **changes)


PROMPTS = [[1, 80], [1, 90, 91], [1, 100], [1, 110, 111]]


def a_task(
    policy: Policy,
    config: RefreshConfig,
    *,
    tokens: int = 6,
    reference: str | None = None,
    start: str | None = None,
    **more: Any,
) -> Task:
    """Stage 3 on four short prompts, from the base unless it is said otherwise."""
    merged = load_model(policy.base, device=CPU, dtype=torch.float32)
    usual = {
        "sampling": Sampling(config.temperature, 1.0, tokens),
        "roles": Roles(tuple(members_of(policy)), reference, start),
    }
    return Task(MergedSampler(merged), PROMPTS, config, **(usual | more))


def a_run(
    policy: Policy,
    config: RefreshConfig,
    *,
    checkpoints: Path | None = None,
    tell: Step = nobody,
    **more: Any,
) -> PolicyResult:
    """PPO, which is given `a_task`."""
    return train_ppo(policy, a_task(policy, config, **more), checkpoints=checkpoints, tell=tell)


def predicted(accuracies: Mapping[str, float], pairs: int = 3000) -> dict[str, Any]:
    """The report of a night that predicted so much of these people's rankings, half of it by each model."""
    by_person = {person: {"accuracy": a, "pairs": pairs // 2} for person, a in accuracies.items()}
    return {"reward": {"accuracy_by_person": by_person}, "judge": {"accuracy_by_person": by_person}}
