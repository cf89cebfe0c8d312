"""What a night lets go of between its stages: plain models, a GPU's memory, the members of a team."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import merged_model
from data.database import Database
from data.home import Home
from tests.nights import a_night
from trainer.gate import replay
from trainer.improving import improve_policy
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
    ]
