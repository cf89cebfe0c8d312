"""A tiny policy with all its roles, replies to train on, and rankings of text, for tests of the trainer."""

from collections.abc import Sequence

import torch

from chatbot.basemodel import Base
from chatbot.policy import Policy
from data.comparisons import RankedTurn
from data.records import RankingKind
from trainer.rollout import Reply

CPU = torch.device("cpu")
END = 2
"""<|im_end|>, the tiny model's end of turn."""


def shake(policy: Policy, name: str, size: float = 0.1, seed: int = 7) -> None:
    """Random numbers where a night's would be: an adapter that changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters(name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def a_learner(base: Base, *, size: float = 0.1) -> Policy:
    """A policy wearing `policy`, `reward` and `judge`; with `size` 0 none of them changes anything yet."""
    policy = Policy(base, device=CPU, dtype=torch.float32)
    for seed, name in enumerate(("policy", "reward", "judge")):
        policy.add(name, seed=seed, rank=4, with_head=name != "policy")
        shake(policy, name, size, seed)
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
