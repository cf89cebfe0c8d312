"""What a run asks of a GPU's memory, and what it lets go of between its stages."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import merged_model
from chatbot.policy import Policy
from data.database import Database
from data.home import Home
from tests.nights import a_night
from tests.test_scoring import likes_z
from tests.test_sft import a_stage, import_politeness
from trainer.config import RefreshConfig
from trainer.gate import replay
from trainer.guards import Guards
from trainer.improving import improve_policy
from trainer.scoring import score_file, train_and_evaluate
from trainer.team import Team


def test_a_gpu_s_memory_is_given_back_and_the_team_parts_before_the_chief_works_alone(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    models: list[weakref.ref[PreTrainedModel]] = []

    def load(base: Base, adapter: Path | None, **how: Any) -> PreTrainedModel:
        model = merged_model(base, adapter, **how)
        models.append(weakref.ref(model))
        return model

    def empty_cache() -> None:
        held = [model for model in models if model() is not None]
        told.append(f"{len(models)} models gone" if not held else f"{len(held)} models held")

    def improve(*given: Any) -> Any:
        told.append("improved")
        return improve_policy(*given)

    def judge(*given: Any, **how: Any) -> Any:
        told.append("judged")
        return replay(*given, **how)

    monkeypatch.setattr(Guards, "judge", property(lambda guards: float(guards._seen.batches)))
    monkeypatch.setattr(Guards, "keeps_endings", True)  # so that there is a candidate
    monkeypatch.setattr("trainer.refresh.merged_model", load)
    monkeypatch.setattr("trainer.refresh.improve_policy", improve)
    monkeypatch.setattr("trainer.refresh.replay", judge)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(Team, "leave", lambda team: told.append("left"))

    run = a_night(ranked, home, tiny_base, updates=2, gate_prompts=4)

    assert run.version, run.reason
    assert told == [
        "0 models gone",
        "1 models gone",  # the reference has replied, and the reward models learn
        "1 models gone",
        "improved",
        "left",
        "2 models gone",
        "judged",
        "3 models gone",
        "judged",
        "4 models gone",  # a server is about to build what it computed the canaries with
    ]


def test_all_that_learns_or_scores_asks_how_much_a_gpu_bears(
    ranked: Database, home: Home, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(policy: Policy, depth: float) -> None:
        raise InterruptedError(f"{policy.dtype}, one layer in {1 / depth:.0f}")

    monkeypatch.setattr("trainer.forward.fit_tokens_per_pass", ask)
    import_politeness(ranked)
    rows, settings = likes_z(tmp_path / "rows.jsonl", 24), {"precision": "float32", "depth": 0.25}
    for learn in (
        lambda: a_night(ranked, home, tiny_base, **settings),
        lambda: a_stage(ranked, home, tiny_base, **settings),
        lambda: train_and_evaluate(tiny_base, [rows], [], RefreshConfig(**settings), tell=lambda *_: None),
        lambda: score_file(tiny_base, [], rows, RefreshConfig(**settings)),
    ):
        with pytest.raises(InterruptedError, match="float32, one layer in 4"):
            learn()
