"""What the stages of one night share, and what a night writes down for the person who reads it later."""

import hashlib
import json
import os
import resource
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chatbot.basemodel import Base
from chatbot.models import pick_device, usual_reply
from data import versions
from data.cli import finite
from data.comparisons import Snapshot
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.records import BASE_VERSION, Run, Sampling
from data.runfolder import REPORT, TAKEN_UP
from trainer.config import RefreshConfig
from trainer.forward import hash_seed
from trainer.gate import Verdict
from trainer.practice import check_prompts
from trainer.progress import Progress
from trainer.publish import check_files
from trainer.result import PolicyResult
from trainer.reward import length_preference
from trainer.team import Team

HISTORY = "ppo.json"
"""The figures of every update, in the run's folder once there is a candidate to judge."""

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


def write_report(
    night: Night,
    snapshot: Snapshot,
    reports: dict[str, dict[str, Any]],
    result: PolicyResult | None,
    verdict: Verdict | None,
) -> dict[str, Any]:
    """All that a person needs to understand the night, as JSON in the run's folder and the version's row.

    Without a verdict there was no candidate to judge, without a result nobody to judge one.
    """
    parts = {part: sum(t.part == part for t in snapshot.turns) for part in "AB"}
    facts = {
        "parent": night.parent,
        "reference": night.reference,
        "rankings": len(snapshot.turns),
        "parts": parts,
        "people": len({t.person_id for t in snapshot.turns}),
        "person_reliability": {t.person_id: t.reliability for t in snapshot.turns if t.reliability < 1},
        "winners_direction": length_preference(snapshot.turns),
        "warm_start": reports["reward"].get("warm_start"),
        "reward": reports["reward"],
        "judge": reports["judge"],
        "algorithm": night.config.algorithm,
        "ppo": _practised(night.base, result) if result else None,
        "gate": verdict.report() if verdict else None,
        "sampling": asdict(night.sampling),
        "seconds": {k: round(v, 1) for k, v in night.progress.seconds.items()},
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
        "peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),  # 0 without a GPU
        "config": asdict(night.config),
        "seed": with_own_seed(night, snapshot).seed,
    }
    report: dict[str, Any] = finite(facts)
    (night.folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return report


def _practised(base: Base, result: PolicyResult) -> dict[str, Any]:
    told = {k: v for k, v in asdict(result).items() if k not in ("history", "samples")}
    return {**told, "samples": readable(base, result.samples)}


def readable(base: Base, samples: dict[int, list[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """Sample replies by update, their token ids as text."""
    chat = base.format
    return {
        update: [
            {**row, "prompt": chat.decode(row["prompt"]), "reply": chat.decode(row["reply"])} for row in rows
        ]
        for update, rows in samples.items()
    }


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
