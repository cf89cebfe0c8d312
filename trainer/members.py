"""The members of the reward ensemble: who they are, and what they say together (ensemble.py trains them).

Knows neither rankings nor the database, so PPO can be tried where there is none.
"""

from torch import Tensor

from chatbot.policy import Policy
from data.runfolder import JUDGE, is_reward_model


def members_of(policy: Policy) -> list[str]:
    """The ensemble's members that `policy` has, in order."""
    members = [name for name in policy.heads if is_reward_model(name) and name != JUDGE]
    return sorted(members, key=lambda name: (len(name), name))  # 2 before 10


def pessimistic(scores: Tensor, pessimism: float) -> tuple[Tensor, Tensor]:
    """Members' scores (M, B) -> the reward, mean - pessimism * std, and the std: (B,) each."""
    std = scores.std(0, correction=0)
    return scores.mean(0) - pessimism * std, std
