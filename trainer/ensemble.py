"""Several reward models that disagree where they do not know, and how they go on from night to night.

    reward = mean over members - pessimism * their spread        (Coste et al. 2024, arXiv 2310.02743)

Members differ by seed and by the conversations they saw, so that a reply which fools one seldom fools all.
The judge is one more model of the same kind, from other conversations; it never enters a reward.

Each member is saved whole as soon as it is done, so a night that was killed loses one member's work at most.
"""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from chatbot.policy import Policy
from data.comparisons import RankedTurn, Snapshot
from data.files import make_it_appear
from trainer import reward
from trainer.config import RefreshConfig
from trainer.rollout import Reply, hash_seed
from trainer.team import SOLO, Team

JUDGE = "judge"

Tell = Callable[[str, int, float, dict[str, float]], None]
"""Hears the model's name, its step, the fraction of the whole ensemble, and the metrics of the step."""


@dataclass(frozen=True)
class Lesson:
    """What tonight's reward models learn from, and whether they go on from last night's."""

    turns: tuple[RankedTurn, ...]
    is_warm: bool
    reason: str


def warm_start(previous: Snapshot | None, now: Snapshot, config: RefreshConfig, seed: int) -> Lesson:
    """The new rankings and a replay sample of the old ones; or all of them, for models that start anew.

    `previous` is all that last night's models have learned from. Where a ranking of it is no longer among
    tonight's as it was, they must forget it, which only a model that starts anew does.
    """
    if not config.warm_start:
        return Lesson(now.turns, False, "Trained anew, as asked.")
    if previous is None:
        return Lesson(now.turns, False, "Trained anew: there are no reward models to go on from.")
    present = {turn.ranking_id: _content(turn) for turn in now.turns}
    gone = sum(present.get(turn.ranking_id) != _content(turn) for turn in previous.turns)
    if gone:
        return Lesson(
            now.turns,
            False,
            f"Trained anew: of the {len(previous.turns)} rankings learned from before, {gone} "
            f"{'is' if gone == 1 else 'are'} deleted, revised or too old.",
        )
    known = {turn.ranking_id for turn in previous.turns}
    new = [turn for turn in now.turns if turn.ranking_id not in known]
    old = [turn for turn in now.turns if turn.ranking_id in known]
    again = random.Random(seed).sample(old, min(len(old), round(config.replay * len(new))))
    chosen = {turn.ranking_id for turn in (*new, *again)}
    return Lesson(
        tuple(turn for turn in now.turns if turn.ranking_id in chosen),
        True,
        f"Went on from the reward models before, with {len(new)} new rankings and {len(again)} of "
        f"{len(old)} old ones.",
    )


def _content(turn: RankedTurn) -> RankedTurn:
    """The turn without its weight, which changes as it ages."""
    return replace(turn, weight=0.0)


def bootstrap_turns(turns: Sequence[RankedTurn], seed: int) -> list[RankedTurn]:
    """As many conversations as there are, drawn with replacement: one drawn n times weighs n times as much.

    So about 63 % of the rankings are there, each scored once a pass. Drawn again until a pair is decided.
    """
    conversations = sorted({turn.conversation_id for turn in turns})
    assert reward.can_teach(turns), "a sample of ties alone would be drawn for ever"
    pick = random.Random(seed)
    while True:
        drawn = Counter(pick.choices(conversations, k=len(conversations)))
        sample = [
            replace(turn, weight=turn.weight * drawn[turn.conversation_id])
            for turn in turns
            if drawn[turn.conversation_id]
        ]
        if reward.can_teach(sample):
            return sample


def fit(
    policy: Policy,
    turns: Sequence[RankedTurn],
    config: RefreshConfig,
    *,
    folder: Path,
    reference: Sequence[Reply],
    warm: Path | None,
    seed: int,
    tell: Tell,
    team: Team = SOLO,
) -> None:
    """Train `reward-0` to `reward-{members - 1}` and save each in `folder`; one that lies there is loaded.

    The first member sees every ranking once, the others a bootstrap sample each.

    reference: replies that come to score 0 on average with a spread of 1, member by member.
    warm: the folder of the members to go on from; None trains fresh ones.
    """
    for i in range(config.members):

        def hear(name: str, step: int, fraction: float, metrics: dict[str, float], i: int = i) -> None:
            tell(name, step, (i + fraction) / config.members, metrics)

        own = hash_seed(seed, i)
        sample = bootstrap_turns(turns, own) if i and reward.can_teach(turns) else turns
        fit_one(
            policy,
            f"reward-{i}",
            sample,
            config,
            folder=folder,
            reference=reference,
            warm=warm,
            seed=own,
            tell=hear,
            team=team,
        )


def fit_judge(
    policy: Policy,
    turns: Sequence[RankedTurn],
    config: RefreshConfig,
    *,
    folder: Path,
    reference: Sequence[Reply],
    warm: Path | None,
    seed: int,
    tell: Tell,
    team: Team = SOLO,
) -> None:
    """Train the judge as `fit` trains a member."""
    fit_one(
        policy,
        JUDGE,
        turns,
        config,
        folder=folder,
        reference=reference,
        warm=warm,
        seed=seed,
        tell=tell,
        team=team,
    )


def fit_one(
    policy: Policy,
    name: str,
    turns: Sequence[RankedTurn],
    config: RefreshConfig,
    *,
    folder: Path,
    reference: Sequence[Reply],
    warm: Path | None,
    seed: int,
    tell: Tell,
    team: Team = SOLO,
) -> None:
    """Train one reward model called `name`, normalise it and save it whole; or load it from `folder`."""
    if team.tell((folder / name).is_dir()):
        policy.load(name, folder / name, with_head=True)
        return
    start = warm / name if warm else None
    if start and not reward.can_teach(turns):  # nothing new since: it stays as it was
        reward.put_on(policy, name, config, seed=seed, start=start)
    else:

        def hear(step: int, fraction: float, metrics: dict[str, float]) -> None:
            tell(name, step, fraction, metrics)

        reward.train_reward(policy, name, turns, config, seed=seed, tell=hear, start=start, team=team)
    reward.normalise(policy, name, reference, team)
    if team.is_chief:
        _save_whole(policy, name, folder)
    team.wait()


def _save_whole(policy: Policy, name: str, folder: Path) -> None:
    """Written beside its place, forced to disk, renamed: what bears the name is complete."""
    unfinished = folder / f".{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    policy.save(name, unfinished)
    make_it_appear(unfinished, folder / name)


def members_of(policy: Policy) -> list[str]:
    """The ensemble's members that `policy` has, in order."""
    numbers = [int(found[1]) for name in policy.heads if (found := re.fullmatch(r"reward-(\d+)", name))]
    return [f"reward-{i}" for i in sorted(numbers)]


def score_sequences(policy: Policy, sequences: Sequence[list[int]]) -> tuple[list[float], list[float]]:
    """The members' mean score of each sequence of token ids and their spread about it, in order."""
    scores = torch.tensor([reward.score_sequences(policy, name, sequences) for name in members_of(policy)])
    return scores.mean(0).tolist(), scores.std(0, correction=0).tolist()


def pessimistic(scores: Tensor, pessimism: float) -> tuple[Tensor, Tensor]:
    """Members' scores (M, B) -> the reward, mean - pessimism * std, and the std: (B,) each."""
    std = scores.std(0, correction=0)
    return scores.mean(0) - pessimism * std, std
