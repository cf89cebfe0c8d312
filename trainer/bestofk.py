"""Stage 3 the simple way, best-of-K: sample K replies a prompt, keep the ensemble's favourite, imitate it.

    KL(best of K || start) <= ln K - (K - 1) / K        (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3)

No value function, no ratio, no penalty. The bound is that of the favourites at large; passes over a few of
them take the policy further, 3.4 nats a reply against a bound of 1.2 (benchmarks/RESULTS.md), so what holds
it are `max_kl` and the judge. It is the fallback where PPO has too little data, and the control that tells
whether PPO was worth it. So the budget is PPO's, updates x prompts_per_update replies, on K times fewer
prompts, and about as many optimiser steps, in whole passes over the favourites; two batches of other prompts
are answered before and after, with the same seeds, to see what it did.

Favourites are imitated at the temperature they were sampled at, as everywhere in PPO: at temperature 1 the
policy would be sharpened twice. A held-out loss would ask for fewer passes; what people prefer does not
(InstructGPT, arXiv 2203.02155, section 3.5, imitates for 16). Left out on purpose: a second round from the
improved policy.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from chatbot.policy import Policy
from data.files import write_json
from trainer import ensemble
from trainer.checkpoint import fingerprint_of
from trainer.config import RefreshConfig
from trainer.forward import Reply, hash_seed
from trainer.members import pessimistic
from trainer.result import PolicyResult
from trainer.rollout import Task, measure_replies, rollout_metrics, some_samples
from trainer.sft import train_sft
from trainer.telling import Done, Step, nobody, within

_MEASURED = 2
"""Batches of other prompts that are answered before and after."""
_FAVOURITES = "favourites.json"


def kl_bound(k: int) -> float:
    """The most that the best of `k` replies can differ from the policy that wrote them, in nats a reply."""
    return math.log(k) - (k - 1) / k


def passes_of(rows: int, config: RefreshConfig) -> int:
    """Whole passes over so many replies that make about as many optimiser steps as PPO takes."""
    wanted = config.updates * config.inner_epochs * math.ceil(config.prompts_per_update / config.minibatch)
    return max(1, round(wanted / math.ceil(rows / config.minibatch)))


def train_best_of_k(
    policy: Policy, task: Task, *, checkpoints: Path | None = None, tell: Step = nobody
) -> PolicyResult:
    """Improve the adapter `policy` by imitating its own favourites; leaves behind what PPO would.

    `policy` must hold the adapters `policy` and `judge`, the members of the ensemble and the reference. The
    history has two rows, fresh samples before and after; where the judge does not like those after better,
    the policy is put back and `best_update` is 0.
    checkpoints: a folder for the favourites; a run that was killed need not sample them again.
    """
    config, ptx = task.config, task.ptx
    count = max(1, config.updates * config.prompts_per_update // config.best_of)
    asked, others = _parted(task.prompts, count, _MEASURED * config.prompts_per_update)
    policy.copy(task.roles.members[0], "value")  # it is read and never learns
    if task.roles.start:
        policy.copy("policy", task.roles.start)
    student = Student(policy, replace(task, prompts=asked, ptx=()))
    start, result = policy.keep("policy"), PolicyResult(best_update=1, updates=1)

    # 1) What the policy says now.
    before, result.samples[0] = student.measure(others)

    def has_come(done: float) -> None:
        tell(0, done, before)

    has_come(0.1)

    # 2) K replies to each prompt, of which one is kept.
    favourites = _favourites(student, checkpoints, within(has_come, 0.1, 0.5))

    # 3) Imitate the favourites, and with PPO-ptx as many demonstrations.
    shown = list(islice(cycle(ptx), len(favourites))) if config.ptx and ptx else []
    weights = [1.0] * len(favourites) + [config.ptx] * len(shown)
    rows = [*favourites, *shown]
    taught = within(has_come, 0.5, 0.9)
    report = train_sft(
        policy, "policy", rows, [], replace(config, sft_epochs=passes_of(len(rows), config)),
        tell=lambda step, done, metrics: taught(done), team=task.team, weights=weights,
        temperature=config.temperature,
    )  # fmt: skip

    # 4) What it says then, and whether the judge likes that better.
    after, result.samples[1] = student.measure(others)
    after |= {"loss": report["loss"][-1], "kl_bound": kl_bound(config.best_of)}
    after["favourite_score"] = statistics.fmean(student.score(favourites))
    result.history += [before, after]
    tell(1, 1.0, after)
    _decide(policy, result, start, config)
    for name in filter(None, ("value", task.roles.start)):
        policy.drop(name)
    return result


def _parted(
    prompts: Sequence[list[int]], asked: int, measured: int
) -> tuple[list[list[int]], list[list[int]]]:
    """So many prompts to teach with, and others to measure on; where a part is short, its own come again.

    Of too few for both, at most half are for measuring; a single one is for both.
    """
    kept = min(asked, max(len(prompts) - measured, math.ceil(len(prompts) / 2)))
    others = prompts[kept:] or prompts
    return list(islice(cycle(prompts[:kept]), asked)), list(islice(cycle(others), measured))


@dataclass(frozen=True)
class Student:
    """The policy that is taught, and its task, whose prompts are those of the favourites."""

    policy: Policy
    task: Task

    def write(self, prompts: Sequence[list[int]], seed: int, tell: Done = nobody) -> list[Reply]:
        """A reply to each prompt by the policy as it is now."""
        return self.task.sampler.write(
            self.policy,
            prompts,
            sampling=self.task.sampling,
            seed=hash_seed(self.task.config.seed, seed),
            tell=tell,
            team=self.task.team,
        )

    def score(self, replies: Sequence[Reply]) -> list[float]:
        """What the ensemble rewards each reply with."""
        return ensemble.rewards_of(self.policy, replies, self.task.config.pessimism, self.task.team)

    def measure(self, prompts: Sequence[list[int]]) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """PPO's figures of fresh replies to `prompts`, and some of the replies."""
        rollout = measure_replies(
            self.policy,
            self.write(prompts, 0),
            temperature=self.task.config.temperature,
            roles=self.task.roles,
            team=self.task.team,
        )
        score, disagreement = pessimistic(rollout.scores, self.task.config.pessimism)
        (shown,) = some_samples(rollout, score, update=0).values()
        return rollout_metrics(rollout, score, disagreement), shown


def _favourites(student: Student, folder: Path | None, tell: Done) -> list[Reply]:
    """The ensemble's favourite among K replies to each prompt; those in `folder`, where it has them.

    Favourites of a run with another beginning are passed over, as checkpoints are.
    """
    task, file, fingerprint = student.task, folder / _FAVOURITES if folder else None, ""
    if file:
        fingerprint = fingerprint_of(student.policy, task)
        kept = _read(file, fingerprint)
        if task.team.broadcast(bool(kept)):
            return kept
    k = task.config.best_of
    replies = student.write([prompt for prompt in task.prompts for _ in range(k)], 1, tell)
    scores = student.score(replies)
    groups = (range(first, first + k) for first in range(0, len(replies), k))
    found = [replies[max(group, key=scores.__getitem__)] for group in groups]
    if file and task.team.is_chief:
        write_json(file, {"fingerprint": fingerprint, "replies": [asdict(reply) for reply in found]})
    return found


def _read(file: Path, fingerprint: str) -> list[Reply]:
    """The favourites in `file`, none where it is not there or another run wrote it."""
    written = json.loads(file.read_text()) if file.is_file() else {}
    if not isinstance(written, dict) or written.get("fingerprint") != fingerprint:
        return []
    return [Reply(**row) for row in written["replies"]]


def _decide(policy: Policy, result: PolicyResult, start: dict[str, Tensor], config: RefreshConfig) -> None:
    """Keep what was learned, or put the start back where the judge does not like it better."""
    before, after = result.history
    result.notes.append(
        f"The favourites of {config.best_of} replies were imitated. Favourites at large lie at most "
        f"{after['kl_bound']:.2f} nats a reply from the start, this policy lies {after['start_kl']:.2f} away."
    )
    if after["start_kl"] > config.max_kl:
        far, limit = after["start_kl"], config.max_kl
        result.stopped = f"The policy is {far:.1f} nats a reply from where it started, more than {limit:g}."
    if result.stopped or after["judge"] <= before["judge"]:
        policy.bring_back("policy", start)
        result.best_update = 0
