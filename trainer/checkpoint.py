"""A PPO run that survives kill -9: all that changes while it goes on, written down after every update.

A checkpoint is a folder: tensors (policy, value with its head, best, average, the optimiser's moments), a
JSON of the rest (beta, guards, history, the state of every random generator) and a manifest with their
hashes. The number of updates done is the cursor: the next prompts and seeds follow from it. It is written
to a temporary directory, forced to disk and renamed: it is there whole or not at all. The newest two stay.

Left out on purpose: what never changes in a run (reference, start, reward models, judge). A fingerprint of it
stands in the checkpoint, so that no run resumes from another's.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chatbot.manifest import hash_file
from chatbot.policy import Policy
from data.files import make_it_appear
from trainer.endings import Endings
from trainer.guards import Guards
from trainer.result import PolicyResult
from trainer.rollout import Task
from trainer.team import SOLO, Team

KEPT = 2
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_FORMAT = 3
"""Of what is written down. A run that was killed before an upgrade begins stage 3 again where it differs."""


@dataclass
class PPOState:
    """All of a run that changes while it goes on."""

    policy: Policy
    optimiser: torch.optim.Optimizer
    guards: Guards
    beta: float
    best: dict[str, Tensor]
    """The adapter of the best checkpoint so far."""
    endings: Endings
    """What ending is paid for, as the last batches say."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of the policy after each update; empty where none is wanted or made yet.

    Where there is one, it is kept in the policy's place. The judge has heard the policy and not its average,
    so the gate is the first to measure what would be published.
    """
    best_judge: float = float("-inf")
    result: PolicyResult = field(default_factory=PolicyResult)

    def average_in(self, decay: float) -> None:
        """Let the average follow the policy; with `decay` 0 there is none.

        x_n = m_n / (1 - decay^n), m_n = decay m_{n-1} + (1 - decay) policy_n: bias-corrected as Adam's
        moments are, or the start would be most of what a night of a dozen updates publishes.
        """
        if decay:
            weight = (1 - decay) / (1 - decay**self.result.updates)
            now = self.policy.keep("policy")
            self.average = {k: torch.lerp(self.average.get(k, x), x, weight) for k, x in now.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything large, under one name each."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "policy": self.policy.state("policy"),
            "value": self.policy.state("value"),
            "head": self.policy.heads["value"].state_dict(),
            "best": self.best,
            "average": self.average,
            "random": _random_tensors(),
        }
        for i, moments in self.optimiser.state_dict()["state"].items():
            parts[f"optimiser.{i}"] = moments
        return {
            f"{part}/{key}": tensor.detach().cpu().contiguous()
            for part, found in parts.items()
            for key, tensor in found.items()
        }

    def facts(self) -> dict[str, Any]:
        """Everything small, as JSON."""
        return {
            "beta": self.beta,
            "best_judge": self.best_judge,
            "guards": self.guards.facts(),
            "endings": asdict(self.endings),
            "result": asdict(self.result),
            "random": _random_facts(),
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Become the run that gave `tensors` and `facts`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, key = name.split("/", 1)
            parts.setdefault(part, {})[key] = tensor
        self.policy.bring_back("policy", parts["policy"])
        self.policy.bring_back("value", parts["value"])
        self.policy.heads["value"].load_state_dict(parts["head"])
        device = self.policy.device
        self.best = {key: tensor.to(device) for key, tensor in parts["best"].items()}
        self.average = {key: tensor.to(device) for key, tensor in parts.get("average", {}).items()}
        moments = {int(p.split(".")[1]): found for p, found in parts.items() if p.startswith("optimiser.")}
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.beta, self.best_judge = facts["beta"], facts["best_judge"]
        self.guards.restore(facts["guards"])
        self.endings = Endings(**facts["endings"])
        samples = {int(update): found for update, found in facts["result"]["samples"].items()}
        self.result = PolicyResult(**{**facts["result"], "samples": samples})
        _restore_random(parts["random"], facts["random"])


class Checkpoints:
    """The checkpoints of one run in a folder of their own; without a folder, none."""

    def __init__(self, folder: Path | None, fingerprint: str, team: Team = SOLO) -> None:
        self._folder, self._fingerprint, self._team = folder, fingerprint, team

    def save(self, state: PPOState) -> None:
        """Write `state` down and remove older ones than the newest two. The chief does it for all."""
        if self._folder is None or not self._team.is_chief:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"update-{state.result.updates:05d}"
        part = target.with_suffix(".part")
        for left_over in (part, target):
            shutil.rmtree(left_over, ignore_errors=True)
        part.mkdir()
        save_file(state.tensors(), part / _TENSORS)
        (part / _STATE).write_text(json.dumps({"fingerprint": self._fingerprint, **state.facts()}))
        hashes = {name: hash_file(part / name) for name in (_TENSORS, _STATE)}
        (part / _MANIFEST).write_text(json.dumps(hashes))
        make_it_appear(part, target)
        for old in self._written()[KEPT:]:
            shutil.rmtree(old)

    def go_on(self, state: PPOState) -> None:
        """Bring `state` to the newest whole checkpoint of this run, if any, with a note of others."""
        notes: list[str] = []
        for path in self._written():
            try:
                tensors, facts = _read(path)
            except (OSError, ValueError, KeyError):
                notes.append(f"The checkpoint {path.name} is damaged; it was left out.")
            else:
                if facts.pop("fingerprint") == self._fingerprint:
                    state.restore(tensors, facts)
                    break
                notes.append(
                    f"The checkpoint {path.name} is of a run with another beginning; it was left out."
                )
            if self._team.is_chief:
                shutil.rmtree(path, ignore_errors=True)
        state.result.notes += notes

    def _written(self) -> list[Path]:
        """The folders of checkpoints, newest first."""
        found = self._folder.glob("update-*") if self._folder else ()
        return sorted((path for path in found if path.suffix != ".part"), reverse=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises ValueError where a file is not the one that was written."""
    hashes = json.loads((path / _MANIFEST).read_text())
    for name in (_TENSORS, _STATE):
        if hash_file(path / name) != hashes[name]:
            raise ValueError(f"{name} of {str(path)!r} is damaged.")
    return load_file(path / _TENSORS), json.loads((path / _STATE).read_text())


def fingerprint_of(policy: Policy, task: Task) -> str:
    """A hash of what a run begins with: everything `policy` can wear, and what it is asked to do."""
    facts = [
        _FORMAT,
        asdict(task.config),
        asdict(task.sampling),
        asdict(task.roles),
        [asdict(reply) for reply in task.ptx],
        [list(prompt) for prompt in task.prompts],
        [task.endings.rate, task.endings.replies],  # the gain follows from the adapters
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(policy.adapters):
        head = policy.heads[name].state_dict() if name in policy.heads else {}
        for key, tensor in sorted({**policy.state(name), **head}.items()):
            digest.update(f"{name} {key} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _random_tensors() -> dict[str, Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), **{f"cuda.{i}": state for i, state in enumerate(cuda)}}


def _random_facts() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]}


def _restore_random(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    version, internal, gauss = facts["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = facts["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        present = min(len(tensors) - 1, torch.cuda.device_count())  # the run may have moved to fewer GPUs
        torch.cuda.set_rng_state_all([tensors[f"cuda.{i}"] for i in range(present)])
