"""The members of the reward ensemble: who they are, and what they say together (ensemble.py trains them).

Knows neither rankings nor the database, so PPO can be tried where there is none.
"""

import re

from torch import Tensor

from chatbot.policy import Policy


def members_of(policy: Policy) -> list[str]:
    """The ensemble's members that `policy` has, in order."""
    numbers = [int(found[1]) for name in policy.heads if (found := re.fullmatch(r"reward-(\d+)", name))]
    return [f"reward-{i}" for i in sorted(numbers)]


def pessimistic(scores: Tensor, pessimism: float) -> tuple[Tensor, Tensor]:
    """Members' scores (M, B) -> the reward, mean - pessimism * std, and the std: (B,) each."""
    std = scores.std(0, correction=0)
    return scores.mean(0) - pessimism * std, std
