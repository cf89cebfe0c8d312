"""Stage 3 of a night: from what serves to a candidate that the reward models like better.

PPO, or with `--algorithm bestofk` the simpler control; either way the policy stays within reach of the
reference, and the checkpoint that the judge likes best is the candidate.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from chatbot.config import server_urls
from chatbot.policy import Policy
from chatbot.remote import RemoteEngine
from data import lessons, runs, versions
from data.comparisons import Snapshot
from data.records import BASE_VERSION, Prompt
from trainer.bestofk import train_best_of_k
from trainer.config import RefreshConfig
from trainer.endings import endings_of
from trainer.ensemble import rewards_of
from trainer.fitting import learned_in
from trainer.forward import Reply
from trainer.members import members_of
from trainer.night import REFERENCE, Night, with_own_seed
from trainer.ppo import train_ppo
from trainer.practice import (
    Exercises,
    choose,
    is_still_allowed,
    read_exercises,
    still_allowed,
    write_exercises,
)
from trainer.result import PolicyResult
from trainer.reward import length_preference
from trainer.rollout import Roles, Task
from trainer.sampler import MARK, WAITING, MergedSampler, Sampler, ServerSampler
from trainer.telling import Step

_EXERCISES = "exercises.json"
_NAMES = {"ppo": "PPO", "bestofk": "best-of-K"}


def improve_policy(
    night: Night,
    policy: Policy,
    merged: PreTrainedModel,
    snapshot: Snapshot,
    reference_replies: list[Reply],
) -> PolicyResult:
    """Make the adapter `policy` out of what serves, and improve it against the reward models."""
    config = with_own_seed(night, snapshot)
    _load_starting_policy(night, policy)
    name = _NAMES[config.algorithm]
    tell = _teller(night, name)
    night.progress.enter("ppo", f"Improving the policy with {name}.")
    exercises = _choose_once(night, snapshot, config)
    prompts = [night.base.format.encode(prompt.messages) for prompt in exercises.practice]
    roles = Roles(
        tuple(members_of(policy)),
        reference=REFERENCE if night.reference is not None else None,
        start=None if night.parent in (BASE_VERSION, night.reference) else "start",
    )
    checkpoints = night.folder / config.algorithm
    with _sampler(night, merged) as sampler:
        task = Task(sampler, prompts, config, night.sampling, roles, ptx=exercises.ptx, team=night.team)
        if config.algorithm == "bestofk":
            result = train_best_of_k(policy, task, checkpoints=checkpoints, tell=tell)
        else:
            rewards = rewards_of(policy, reference_replies, config.pessimism, night.team)
            task = replace(task, endings=endings_of(reference_replies, rewards))
            taste = length_preference(snapshot.turns)
            result = train_ppo(policy, task, length_preference=taste, checkpoints=checkpoints, tell=tell)
    theirs = [ids for ids, prompt in zip(prompts, exercises.practice, strict=True) if prompt.turn_id]
    result.samples = shown_samples(result.samples, theirs)
    return result


def _teller(night: Night, name: str) -> Step:
    logged: set[int] = set()

    def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
        if update not in logged:  # best-of-K says how far it is many times between its two rows
            night.progress.log(update, metrics)
            logged.add(update)
        message = (
            f"{name}, after {update} updates: score {metrics['score']:+.2f}, judge {metrics['judge']:+.2f}, "
            f"KL {metrics['kl']:.1f}, {metrics['length']:.0f} tokens."
        )
        night.progress.tell(fraction, message)

    return tell


def shown_samples(
    samples: dict[int, list[dict[str, Any]]], theirs: list[list[int]]
) -> dict[int, list[dict[str, Any]]]:
    """The replies that a report may show: none to people's own turns, `theirs`, which may yet go."""
    return {update: [row for row in rows if row["prompt"] not in theirs] for update, rows in samples.items()}


@contextmanager
def _sampler(night: Night, merged: PreTrainedModel) -> Iterator[Sampler]:
    """The one that `--engine` asks for. Raises Problem where none of its servers can be used."""
    urls = server_urls(night.config.engine)
    if not urls:
        yield MergedSampler(merged)
        return
    engine = RemoteEngine(
        night.base,
        urls,
        night.home.adapters,
        four_bit=night.config.four_bit,
        max_waiting=WAITING,
        prefix=MARK,
    )
    sampler = ServerSampler(engine, night.home.adapters)
    try:
        if night.team.is_chief:
            sampler.remove_leftovers()
            engine.start()
        yield sampler
    finally:
        engine.close()


def prompts_to_judge(night: Night) -> list[Prompt]:
    """What the gate compares versions on, chosen before the policy learned."""
    return still_allowed(night.db, read_exercises(night.folder / _EXERCISES).judging)


def _choose_once(night: Night, snapshot: Snapshot, config: RefreshConfig) -> Exercises:
    """What to practise on, frozen at the first look: people chat on while a night is resumed.

    Where some of it was deleted or taken back since, what was learned from it goes; the stage begins anew.
    """
    file, learned = night.folder / _EXERCISES, night.folder / config.algorithm
    former = read_exercises(file) if night.team.is_chief and file.is_file() else None
    if night.team.is_chief and not (former and is_still_allowed(night.db, former)):
        if learned.is_dir():  # the checkpoints first: the file is what tells that they must go
            shutil.rmtree(learned)
            night.progress.begin_anew()
            runs.forget_metrics(night.db, night.run, "ppo")
        if former:  # an edit is a ranking too, by the same id: what the reward models know of it stays
            known = {ranking for rankings in learned_in(night.folder).values() for ranking in rankings}
            lessons.forget(night.db, night.run, set(_taught_by(former)) - known)
        write_exercises(choose(night.db, night.base, config, snapshot.turns), file)
    night.team.wait()
    exercises = read_exercises(file)
    if night.team.is_chief:
        lessons.note(night.db, night.run.id, _taught_by(exercises))
    return exercises


def _taught_by(exercises: Exercises) -> list[str]:
    """The messages that the policy learns from."""
    turns = [prompt.turn_id for prompt in exercises.practice if prompt.turn_id]
    return [*turns, *exercises.demonstrations]


def _load_starting_policy(night: Night, policy: Policy) -> None:
    if night.parent != BASE_VERSION:
        policy.load("policy", night.home.adapters / versions.get(night.db, night.parent).path)
    elif night.reference is not None:
        policy.copy(REFERENCE, "policy")
    else:
        config = night.config
        policy.add("policy", seed=config.seed, rank=config.rank, depth=config.depth)
