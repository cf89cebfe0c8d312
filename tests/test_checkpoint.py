"""trainer/checkpoint.py: a run that was cut off goes on from what is whole on disk as if nothing had been."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatbot.basemodel import Base
from chatbot.policy import Policy
from tests.learners import a_config, a_learner, a_run, some_replies
from trainer import checkpoint
from trainer.endings import Endings
from trainer.result import PolicyResult

CONFIG = a_config(updates=5, ppo_lr=5e-4, inner_epochs=2, minibatch=2, target_kl=0.5, ema=0.9, ptx=0.5)


class PowerCut(Exception):
    """What ends a run here in place of a kill."""


def a_night(
    base: Base,
    folder: Path | None,
    *,
    cut_at: int | None = None,
    made: list[int] | None = None,
    **changes: Any,
) -> PolicyResult:
    """A run with everything on that a checkpoint has to hold; `cut_at` ends it after so many updates, and
    `made` hears which it makes."""
    policy = a_learner(base)

    def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
        if made is not None:
            made.append(update)
        if update == cut_at:
            raise PowerCut

    result = a_run(
        policy,
        a_config(**{**CONFIG.__dict__, **changes}),
        start="start",
        endings=Endings(0.4, 64, difference=0.5, weight=8.0),
        ptx=some_replies(),
        checkpoints=folder,
        tell=tell,
    )
    result.history[-1]["weights"] = sum(float(t.double().sum()) for t in policy.state("policy").values())
    return result


def figures(result: PolicyResult) -> list[dict[str, float]]:
    """The history without the seconds, which differ."""
    return [
        {name: value for name, value in metrics.items() if not name.startswith("seconds")}
        for metrics in result.history
    ]


def assert_same(one: PolicyResult, other: PolicyResult) -> None:
    for ours, theirs in zip(figures(one), figures(other), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert (one.best_update, one.updates, one.stopped) == (other.best_update, other.updates, other.stopped)
    assert one.samples.keys() == other.samples.keys()


def test_resume_equals_uninterrupted(tiny_base: Base, tmp_path: Path) -> None:
    whole = a_night(tiny_base, None)
    for cut_at in (1, 2, 4):
        with pytest.raises(PowerCut):
            a_night(tiny_base, tmp_path, cut_at=cut_at)
    shutil.rmtree(tmp_path / "update-00004")  # and go on from the one before
    made: list[int] = []
    resumed = a_night(tiny_base, tmp_path, made=made)
    assert_same(resumed, whole)
    assert resumed.notes == whole.notes
    assert made == [3, 4, 5], "a run that began anew would be the same too"


def half_a_night(base: Base, folder: Path) -> None:
    """Three updates written down, and a cut in the fourth."""
    with pytest.raises(PowerCut):
        a_night(base, folder, cut_at=3)


def test_the_newest_two_checkpoints_stay_and_nothing_is_pickled(tiny_base: Base, tmp_path: Path) -> None:
    half_a_night(tiny_base, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("update-*")) == ["update-00002", "update-00003"]
    files = {path.suffix for path in tmp_path.glob("update-*/*")}
    assert files == {".safetensors", ".json"}


@pytest.mark.parametrize(
    "file, damage",
    [
        ("tensors.safetensors", "cut"),
        ("tensors.safetensors", "flipped"),
        ("state.json", "flipped"),
        ("manifest.json", "cut"),
        ("manifest.json", "gone"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny_base: Base, tmp_path: Path, file: str, damage: str
) -> None:
    half_a_night(tiny_base, tmp_path)
    path = tmp_path / "update-00003" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    resumed = a_night(tiny_base, tmp_path)
    assert resumed.notes[0] == "The checkpoint update-00003 is damaged; it was left out."
    assert len(resumed.history) == 6


def test_what_a_kill_left_half_written_is_cleared_away(tiny_base: Base, tmp_path: Path) -> None:
    half_a_night(tiny_base, tmp_path)
    unfinished = tmp_path / "update-00004.part"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    resumed = a_night(tiny_base, tmp_path)
    assert (resumed.updates, resumed.notes[1:]) == (5, [])
    assert not unfinished.exists()


@pytest.mark.parametrize("change", [{"beta": 0.2}, {"seed": 1}])
def test_a_checkpoint_of_another_run_is_left_out(
    tiny_base: Base, tmp_path: Path, change: dict[str, float]
) -> None:
    half_a_night(tiny_base, tmp_path)
    resumed = a_night(tiny_base, tmp_path, **change)
    assert "is of a run with another beginning" in resumed.notes[0]
    assert_same(resumed, a_night(tiny_base, None, **change))


def test_other_reward_models_make_another_run(tiny_base: Base, tmp_path: Path) -> None:
    half_a_night(tiny_base, tmp_path)
    policy: Policy = a_learner(tiny_base)
    with torch.no_grad():
        policy.heads["reward-1"].bias.add_(1e-3)
    result = a_run(policy, CONFIG, start="start", ptx=some_replies(), checkpoints=tmp_path)
    assert "is of a run with another beginning" in result.notes[0]


def test_a_checkpoint_of_another_format_is_left_out(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_a_night(tiny_base, tmp_path)
    monkeypatch.setattr(checkpoint, "_FORMAT", checkpoint._FORMAT + 1)
    assert "is of a run with another beginning" in a_night(tiny_base, tmp_path).notes[0]


def test_every_random_generator_goes_on_where_it_was(tiny_base: Base, tmp_path: Path) -> None:
    def seed(number: int) -> None:
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    seed(5)
    half_a_night(tiny_base, tmp_path)
    seed(5)
    a_night(tiny_base, None)
    expected = draw()
    seed(6)
    a_night(tiny_base, tmp_path)
    assert draw() == expected


@pytest.mark.parametrize("present", [1, 2, 3])
def test_a_run_goes_on_with_other_gpus_than_it_began_with(
    monkeypatch: pytest.MonkeyPatch, present: int
) -> None:
    """Two GPUs wrote it; no test machine has to have them."""
    restored: list[list[torch.Tensor]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([1]), torch.tensor([2])])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    checkpoint._restore_random(checkpoint._random_tensors(), checkpoint._random_facts())
    assert restored == [[torch.tensor([1]), torch.tensor([2])][:present]]


def test_a_finished_run_called_again_gives_the_same_result(tiny_base: Base, tmp_path: Path) -> None:
    assert_same(a_night(tiny_base, tmp_path), a_night(tiny_base, tmp_path))
    state = json.loads((tmp_path / "update-00005" / "state.json").read_text())
    assert state["result"]["updates"] == 5
