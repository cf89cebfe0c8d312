"""Several reward models that disagree where they do not know, and how they go on from night to night.

    reward = mean over members - pessimism * their spread        (Coste et al. 2024, arXiv 2310.02743)

Members differ by seed and by the conversations they saw, so that a reply which fools one seldom fools all.
The judge is one more model of the same kind, from other conversations; it never enters a reward.

Each member is saved whole as soon as it is done, so a night that was killed loses one member's work at most.
"""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from chatbot import adapters
from chatbot.manifest import RewardRecord, hash_file
from chatbot.policy import Policy
from data.comparisons import RankedTurn, weigh
from data.files import make_it_appear
from data.runfolder import JUDGE, reward_model
from trainer import reward
from trainer.config import RefreshConfig
from trainer.forward import Reply, hash_seed
from trainer.members import members_of
from trainer.team import SOLO, Team
from trainer.telling import ModelStep


@dataclass(frozen=True)
class TrainingSet:
    """What tonight's reward models learn from, and whether they go on from last night's."""

    turns: tuple[RankedTurn, ...]
    """Weighed among themselves: nobody has more of this lesson than they may have of a night."""
    is_warm: bool
    reason: str
    learned: Mapping[str, str]
    """Everything that tonight's models will ever have learned from: ranking -> hash of its content."""


def warm_start(
    now: Sequence[RankedTurn],
    config: RefreshConfig,
    seed: int,
    *,
    learned: Mapping[str, str] | None,
    still: Sequence[RankedTurn],
    saved_rank: int | None,
) -> TrainingSet:
    """The new rankings and a replay sample of the old ones; or all of them, for models that start anew.

    learned: `TrainingSet.learned` of the models to go on from; None where there are none.
    still: what teaches to this day of what they learned from.
    saved_rank: that of their adapters.

    Where a ranking that was learned from is not in `still` as it was, the models must forget it,
    which only models that start anew do. (Another release may have put it in the other part.) One that only
    grew too old for `now` is still there. It stays in `learned` for as long as its models go on, so that it
    is missed when it is deleted many nights later.
    """
    tonight = _hashes(now)

    def anew(why: str) -> TrainingSet:
        return TrainingSet(tuple(weigh(now)), False, f"Trained anew{why}", tonight)

    if not config.warm_start:
        return anew(", as asked.")
    if learned is None:
        return anew(": there are no reward models to go on from.")
    there = _hashes(still)
    gone = sum(there.get(ranking) != content for ranking, content in learned.items())
    if gone:
        why = f": of the {len(learned)} rankings learned from before, {gone} {'is' if gone == 1 else 'are'} "
        return anew(why + "deleted, revised or in the other part now.")
    new = [turn for turn in now if turn.ranking_id not in learned]
    old = [turn for turn in now if turn.ranking_id in learned]
    again = random.Random(seed).sample(old, min(len(old), round(config.replay * len(new))))
    chosen = {turn.ranking_id for turn in (*new, *again)}
    reason = (
        f"Went on from the reward models before, with {len(new)} new rankings and {len(again)} of "
        f"{len(old)} old ones."
    )
    if saved_rank not in (None, config.rank):
        reason += f" They keep their rank, {saved_rank}; --no-warm-start trains some of rank {config.rank}."
    turns = weigh([turn for turn in now if turn.ranking_id in chosen])
    return TrainingSet(tuple(turns), True, reason, {**learned, **tonight})


def _hashes(turns: Iterable[RankedTurn]) -> dict[str, str]:
    """Ranking -> hash of all of it but what it weighs, which changes with time, and its chat's opening, which
    decides no more than the part. Nobody's words are kept."""

    def hashed(turn: RankedTurn) -> str:
        facts = asdict(replace(turn, weight=0.0, reliability=1.0))
        del facts["opening"]  # models from before there was one go on
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    return {turn.ranking_id: hashed(turn) for turn in turns}


def rank_of(folder: Path) -> int:
    """The LoRA rank of the adapter saved in `folder`."""
    return int(json.loads((folder / adapters.CONFIG).read_text())["r"])


def bootstrap_turns(turns: Sequence[RankedTurn], seed: int) -> list[RankedTurn]:
    """As many groups as there are, drawn with replacement: one drawn n times weighs n times as much.

    So about 63 % of the rankings are there, each scored once a pass. Drawn again until a pair is decided.
    """
    groups = sorted({turn.group for turn in turns})
    assert reward.can_teach(turns), "a sample of ties alone would be drawn for ever"
    pick = random.Random(seed)
    while True:
        drawn = Counter(pick.choices(groups, k=len(groups)))
        sample = [
            replace(turn, weight=turn.weight * drawn[turn.group]) for turn in turns if drawn[turn.group]
        ]
        if reward.can_teach(sample):
            return sample


def fit(
    policy: Policy,
    turns: Sequence[RankedTurn],
    config: RefreshConfig,
    *,
    folder: Path,
    reference_replies: Sequence[Reply],
    warm: Path | None,
    seed: int,
    tell: ModelStep,
    team: Team = SOLO,
) -> None:
    """Train `reward-0` to `reward-{members - 1}` and save each in `folder`; one that lies there is loaded.

    The first member learns from every ranking, the others from a bootstrap sample each.

    reference_replies: those that come to score 0 on average with a spread of 1, member by member.
    warm: the folder of the members to go on from; None trains fresh ones.
    """
    for i in range(config.members):

        def hear(name: str, step: int, fraction: float, metrics: dict[str, float], i: int = i) -> None:
            tell(name, step, (i + fraction) / config.members, metrics)

        own = hash_seed(seed, i)
        sample = bootstrap_turns(turns, own) if i and reward.can_teach(turns) else turns
        fit_one(
            policy,
            reward_model(i),
            sample,
            config,
            folder=folder,
            reference_replies=reference_replies,
            warm=warm,
            seed=own,
            tell=hear,
            team=team,
        )


def fit_one(
    policy: Policy,
    name: str,
    turns: Sequence[RankedTurn],
    config: RefreshConfig,
    *,
    folder: Path,
    reference_replies: Sequence[Reply],
    warm: Path | None,
    seed: int,
    tell: ModelStep,
    team: Team = SOLO,
) -> None:
    """Train one reward model called `name`, normalise it and save it whole; or load it from `folder`."""
    if team.broadcast((folder / name).is_dir()):
        policy.load(name, folder / name, with_head=True)
        return
    start = warm / name if warm else None
    if start and not reward.can_teach(turns):  # nothing new since: it stays as it was
        reward.add_reward_model(policy, name, config, seed=seed, start=start)
    else:

        def hear(step: int, fraction: float, metrics: dict[str, float]) -> None:
            tell(name, step, fraction, metrics)

        reward.train_reward(policy, name, turns, config, seed=seed, tell=hear, start=start, team=team)
    reward.normalise(policy, name, reference_replies, team)
    if team.is_chief:
        _save_whole(policy, name, folder)
    team.wait()


def _save_whole(policy: Policy, name: str, folder: Path) -> None:
    """Written beside its place, forced to disk, renamed: what bears the name is complete."""
    unfinished = folder / f".{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    policy.save(name, unfinished)
    make_it_appear(unfinished, folder / name)


def reward_records(policy: Policy, folder: Path) -> list[RewardRecord]:
    """What a version's manifest says of the reward models in `folder` and of their normalisation."""
    return [
        {
            "name": name,
            "files": {path.name: hash_file(path) for path in sorted((folder / name).iterdir())},
            "mean": float(policy.heads[name].mean),
            "std": float(policy.heads[name].std),
            "usual_length": float(policy.heads[name].usual_length),
            "length": float(policy.heads[name].length.detach()),
        }
        for name in (*members_of(policy), JUDGE)
    ]


def rewards_of(policy: Policy, replies: Sequence[Reply], pessimism: float, team: Team = SOLO) -> list[float]:
    """What each reply is worth: the mean less `pessimism` times the spread. A team shares out the reading."""
    mine = team.share(replies)
    with policy.remembering():
        scores = torch.tensor([reward.scores_of(policy, name, mine) for name in members_of(policy)])
    mean, std = scores.mean(0).double(), scores.std(0, correction=0).double()
    return team.collect((mean - pessimism * std).tolist())
