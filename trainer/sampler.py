"""Who writes replies: a merged model in this process, or for a policy that learns from them vLLM servers."""

import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import torch
from transformers import PreTrainedModel

from chatbot.chatformat import FittedPrompt
from chatbot.generation import Asked, Generation
from chatbot.interface import AnyEngine
from chatbot.kernels import Format
from chatbot.memory import free_bytes
from chatbot.padded import TransformersModel
from chatbot.policy import Policy
from chatbot.runner import bytes_to_prepare, prepare, runner_for
from chatbot.sampling import PlainJob, Row
from data.errors import Problem
from data.records import Sampling
from trainer.forward import Reply, hash_seed
from trainer.team import SOLO, Team
from trainer.telling import Done, nobody

WAITING = 256
"""Requests that are sent ahead of the replies: enough to keep a few servers busy."""
MARK = "rollout-"
"""What the names of its versions begin with; they are in no table."""
_ENDS = ("stop", "length")
STALLED_SECONDS = 600.0
"""Without a token of any reply: longer than a server takes to start anew and load its model."""
_LOOK_SECONDS = 0.5
"""Between two looks whether there was one."""
_PATIENCE_SECONDS = 10.0


class Sampler(Protocol):
    """Lets a policy write."""

    def write(
        self,
        policy: Policy,
        prompts: Sequence[list[int]],
        *,
        sampling: Sampling,
        seed: int,
        team: Team = SOLO,
        tell: Done = nobody,
    ) -> list[Reply]:
        """One reply to each prompt by the adapter `policy` as it is now; every member of a team gets all."""


@dataclass(frozen=True)
class MergedSampler:
    """Writes in this process, each member of a team its share."""

    model: PreTrainedModel
    """A plain copy of the base, which is overwritten."""

    def write(
        self,
        policy: Policy,
        prompts: Sequence[list[int]],
        *,
        sampling: Sampling,
        seed: int,
        team: Team = SOLO,
        tell: Done = nobody,
    ) -> list[Reply]:
        policy.write_merged("policy", self.model)
        end = policy.base.format.end_of_turn
        return sample_replies(
            self.model, prompts, sampling=sampling, end_of_turn=end, seed=seed, tell=tell, team=team
        )


def sample_replies(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    sampling: Sampling,
    end_of_turn: int,
    seed: int,
    rows: int = 32,
    tell: Done = nobody,
    team: Team = SOLO,
    copies: bool = True,
) -> list[Reply]:
    """One reply to each prompt from a merged model, up to `rows` at a time; `tell` hears the fraction done.

    They are written as served replies are: a reply that ends makes room for the next prompt. Each member of a
    team samples its share; all get the whole list. Without `copies`, or where memory is short, it is slower,
    and the weights are in memory once.
    """
    mine = team.share(range(len(prompts)))
    form: Format = "float32" if model.dtype == torch.float32 else "bfloat16"
    copies = copies and free_bytes(model.device) > bytes_to_prepare(model, form)
    runner = runner_for(prepare(model, form) if copies else TransformersModel(model), end_of_turn)
    jobs = {i: PlainJob(prompts[i], [Row(hash_seed(seed, i))], sampling) for i in mine}
    waiting = deque(sorted(mine, key=lambda i: len(prompts[i])))
    while waiting or not runner.is_idle:
        while waiting and runner.width < rows:
            runner.add(jobs[waiting.popleft()])
        runner.step()
        tell(sum(jobs[i].rows[0].finish_reason is not None for i in mine) / len(mine))
    return team.collect([_reply(jobs[i]) for i in mine])


def _reply(job: PlainJob) -> Reply:
    (row,) = job.rows
    return Reply(job.prompt, row.token_ids, row.finish_reason == "stop", row.logprobs)


@dataclass(frozen=True)
class ServerSampler:
    """Lets servers write: each batch is that of a version of its own, which goes when it is done.

    The servers round otherwise than the trainer; rollout.py measures that, and learns from its own numbers.
    """

    engine: AnyEngine
    """With room for `WAITING` requests, and `MARK` as its prefix: so it removes what a killed night left."""
    folder: Path
    """That the servers see under the same path."""

    def remove_leftovers(self) -> None:
        """Remove the files of a night that was killed. For the beginning of a night: no other one runs."""
        for directory in self.folder.glob(f"{MARK}*"):
            shutil.rmtree(directory, ignore_errors=True)  # one that stays harms nobody

    def write(
        self,
        policy: Policy,
        prompts: Sequence[list[int]],
        *,
        sampling: Sampling,
        seed: int,
        team: Team = SOLO,
        tell: Done = nobody,
    ) -> list[Reply]:
        return team.broadcast(self._write(policy, prompts, sampling, seed, tell) if team.is_chief else [])

    def _write(
        self, policy: Policy, prompts: Sequence[list[int]], sampling: Sampling, seed: int, tell: Done
    ) -> list[Reply]:
        """Raises Problem where the servers lose a reply, or write nothing for STALLED_SECONDS."""
        directory = self.folder / f"{MARK}{uuid4()}"
        directory.mkdir()
        asked: list[Generation] = []
        try:
            policy.save("policy", directory)
            for file in directory.iterdir():  # its owner's alone so far; a server may be another user
                file.chmod(directory.stat().st_mode & 0o666)
            self.engine.load(directory.name, directory)
            for number, prompt in enumerate(prompts):
                if number >= WAITING:
                    _wait(asked[number - WAITING], asked)
                seeds = [hash_seed(seed, number)]
                # No deadline: it would count from now, and hundreds stand before it. What ends the wait for
                # servers that write no more is `_wait`.
                one = Asked(FittedPrompt(prompt, 0), sampling, seeds, kind="rollout")
                asked.append(self.engine.accept(one, directory.name))
            for number, generation in enumerate(asked, start=1):
                _wait(generation, asked)
                tell(number / len(asked))
        finally:
            self._let_go(directory, asked)
        replies = [generation.replies[0] for generation in asked]
        if any(reply.finish_reason not in _ENDS for reply in replies):
            raise Problem("The engines left a reply unfinished - look after them, then resume this run.")
        return [
            Reply(prompt, reply.token_ids, reply.finish_reason == "stop", reply.logprobs)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def _let_go(self, directory: Path, asked: Sequence[Generation]) -> None:
        """The version leaves the servers, and its files the disk."""
        for generation in asked:
            generation.stop()
        self.engine.unload(directory.name)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while directory.name in self.engine.known_versions and time.monotonic() < deadline:
            time.sleep(0.01)
        shutil.rmtree(directory)


def _wait(generation: Generation, asked: Sequence[Generation]) -> None:
    """Until `generation` has ended, as long as something is written of any. Raises Problem."""
    written, since = 0, time.monotonic()
    while not generation.wait(_LOOK_SECONDS):
        before, written = written, sum(one.replies[0].tokens for one in asked)
        if written != before:
            since = time.monotonic()
        if time.monotonic() - since > STALLED_SECONDS:
            raise Problem(
                f"The engines have written nothing for {STALLED_SECONDS:.0f} seconds - look after them, then "
                "resume this run."
            )
