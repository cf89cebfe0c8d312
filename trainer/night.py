"""What the stages of one night share."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import pick_device, usual_reply
from chatbot.policy import Policy
from data import versions
from data.comparisons import Snapshot
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.records import BASE_VERSION, Run, Sampling
from data.runfolder import TAKEN_UP
from trainer.config import RefreshConfig
from trainer.forward import hash_seed
from trainer.practice import check_prompts
from trainer.progress import Progress
from trainer.publish import check_files
from trainer.team import Team

REFERENCE = "reference"
"""The adapter of the version that `trainer sft` made, where there is one; else the base is the reference."""

_ALONE, _BESIDE = 0.95, 2 / 3
"""Of the memory of a GPU that is free when a night begins, what it may take. Beside a server it leaves the
third on which that counts for replies under way (chatbot/memory.py)."""


@dataclass(frozen=True)
class Night:
    """What the stages of one night share."""

    db: Database
    home: Home
    base: Base
    config: RefreshConfig
    run: Run
    progress: Progress
    sampling: Sampling
    parent: str
    """What serves when the night begins, and what the candidate is compared with."""
    reference: str | None
    """The version that anchors the KL; None for the base itself."""
    team: Team

    @property
    def folder(self) -> Path:
        return self.home.runs / self.run.id


def begin(
    db: Database, home: Home, base: Base, config: RefreshConfig, run: Run, progress: Progress, team: Team
) -> Night:
    """Settle what the stages share; the operator's seed and files."""
    if pick_device().type == "cuda":
        _limit_memory()
    torch.manual_seed(config.seed)
    limit = config.max_new_tokens or usual_reply(pick_device())
    check_prompts(db, base, config, limit)
    parent = team.broadcast(versions.serving(db).current)
    found = versions.get(db, parent)
    if parent != BASE_VERSION and found.base_sha256 != base.sha256:
        raise Refused(
            f"{parent} serves on another base model, {found.base_model!r} - refresh with that --model, or "
            'run "trainer publish base" first.'
        )
    anchor = team.broadcast(versions.reference(db, base.sha256))
    check_files(home, found)
    if anchor:
        check_files(home, anchor, 'it is the reference: run "trainer reference base", or "trainer sft" again')
    if team.is_chief and team.size > 1:  # a watcher, which knows of no launcher, leaves it alone
        (home.runs / run.id).mkdir(exist_ok=True)
        (home.runs / run.id / TAKEN_UP).touch()
    return Night(
        db=db,
        home=home,
        base=base,
        config=config,
        run=run,
        progress=progress,
        sampling=Sampling(config.temperature, 1.0, limit),
        parent=parent,
        reference=anchor.name if anchor else None,
        team=team,
    )


def _limit_memory() -> None:
    """Where a GPU's memory is too short for both, the night fails and not the replies of a server beside it.

    A process of lowered priority, as the watcher starts them, is one beside a server.
    """
    free, total = torch.cuda.mem_get_info()
    share = _BESIDE if os.getpriority(os.PRIO_PROCESS, 0) > 0 else _ALONE
    torch.cuda.set_per_process_memory_fraction(share * (free + torch.cuda.memory_reserved()) / total)


def with_own_seed(night: Night, snapshot: Snapshot) -> RefreshConfig:
    """The settings with a seed of this night's own, for what is practised, sampled and judged on.

    With the same dice every night, each candidate would meet the same prompts and the same draws as the one
    before, and would be selected for suiting these. The seed follows from what serves and what was asked, in
    order: it is the same when the night is taken up again, and on a computer that rounds otherwise and wrote
    other replies. Reward models and the reference's replies keep the operator's seed: from night to night
    they are compared.
    """
    facts = [night.parent, [turn.prompt for turn in snapshot.turns]]
    digest = hashlib.sha256(json.dumps(facts).encode()).digest()
    seed = hash_seed(night.config.seed, int.from_bytes(digest[:4], "big"))
    return replace(night.config, seed=seed)


def load_reference(night: Night, policy: Policy, merged: PreTrainedModel) -> None:
    """The adapter that is the zero of scores and the anchor of the KL; `merged` becomes it too."""
    if night.reference is not None:
        policy.load(REFERENCE, night.home.adapters / versions.get(night.db, night.reference).path)
        policy.write_merged(REFERENCE, merged)
