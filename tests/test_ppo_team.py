"""PPO by two processes: the rollouts, losses and weights of one process with the same batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from chatbot.basemodel import Base, load_base
from data.home import open_home
from tests.learners import a_config, a_learner, a_run, some_replies
from trainer.endings import Endings
from trainer.team import SOLO, Team

CONFIG = a_config(
    updates=3, ppo_lr=5e-4, prompts_per_update=7, minibatch=3, inner_epochs=2, ptx=0.5, target_kl=0.5
)
"""Seven replies in steps of three: one step has a single reply, and one member nothing to do in it."""


def a_night(base: Base, folder: Path, team: Team) -> dict[str, Any]:
    policy = a_learner(base)
    result = a_run(
        policy, CONFIG, tokens=8, start="start", endings=Endings(0.9),
        ptx=some_replies(), checkpoints=folder, team=team,
    )  # fmt: skip
    history = [{k: v for k, v in m.items() if not k.startswith("seconds")} for m in result.history]
    weights = {name: tensor.norm().item() for name, tensor in policy.state("policy").items()}
    return {"history": history, "weights": weights, "best": result.best_update, "notes": result.notes}


def member(rank: int, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    base = load_base(model, open_home(Path(folder, "home")), lambda text: None)
    found = a_night(base, Path(folder, "checkpoints"), Team(rank, 2))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_steps_of_one(tiny_base: Base, tmp_path: Path) -> None:
    alone = a_night(tiny_base, tmp_path / "alone", SOLO)
    mp.spawn(member, args=(str(tiny_base.directory), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["best"], found["notes"]) == (alone["best"], alone["notes"])
        assert found["weights"] == pytest.approx(alone["weights"], abs=1e-4)
        for ours, theirs in zip(found["history"], alone["history"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    written = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert written == {"update-00002", "update-00003"}
