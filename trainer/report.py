"""What a night writes down for the person who reads it later."""

import json
from dataclasses import asdict
from typing import Any

import torch

from chatbot.basemodel import Base
from chatbot.memory import peak_bytes
from data.cli import finite
from data.comparisons import Snapshot
from data.runfolder import REPORT
from trainer.gate import Verdict
from trainer.night import Night, with_own_seed
from trainer.result import PolicyResult
from trainer.reward import length_preference


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
        "peak_memory_gib": round(peak_bytes() / 2**30, 2),
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
