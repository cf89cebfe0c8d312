"""trainer/report.py: what a night writes down."""

import json
from typing import Any

import pytest
import torch

from chatbot.basemodel import Base
from data.comparisons import Snapshot
from data.database import Database
from data.home import Home
from tests.learners import ranked
from tests.nights import a_run, tiny_night
from trainer.night import begin
from trainer.progress import Progress
from trainer.report import write_report
from trainer.result import PolicyResult
from trainer.team import SOLO


def test_a_report_is_json_whatever_became_of_the_scores(
    db: Database,
    home: Home,
    tiny_base: Base,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    run = a_run(db)
    config = tiny_night(home, temperature=0.7, max_new_tokens=50)
    night = begin(db, home, tiny_base, config, run, Progress(db, run, quiet=True), SOLO)
    night.folder.mkdir(parents=True)
    reply = {"prompt": [80], "reply": [81], "score": float("nan"), "judge": float("inf")}
    result = PolicyResult(
        best_update=2, updates=5, stopped="score is not a finite number.", samples={5: [reply]}
    )
    reports: dict[str, dict[str, Any]] = {"reward": {"ece": float("-inf")}, "judge": {}}
    report = write_report(night, Snapshot((ranked("ab", (1, 2)),), ""), reports, result, None)
    json.dumps(report, allow_nan=False)
    (shown,) = report["ppo"]["samples"][5]
    assert (shown["score"], shown["judge"], report["reward"]) == (None, None, {"ece": None})
    assert report["sampling"] == {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 50}
    assert report["peak_memory_gib"] > 0.05 and report["peak_gpu_memory_gib"] == 3
