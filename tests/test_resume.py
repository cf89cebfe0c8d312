"""kill -9 at random moments of a PPO run: what is taken up again gives the metrics of a run left in peace."""

import json
import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from chatbot.basemodel import Base, load_base
from data.home import open_home
from tests.test_checkpoint import a_night, figures

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.test_checkpoint"])  # a child begins with everything imported
UPDATES = 12


def night_in_a_process(model: str, home: str, checkpoints: str, out: str, begun: Event) -> None:
    torch.set_num_threads(1)
    base = load_base(model, open_home(Path(home)), lambda text: None)
    begun.set()
    result = a_night(base, Path(checkpoints), updates=UPDATES)
    Path(out).write_text(json.dumps([figures(result), result.best_update, result.notes]))


def go(base: Base, folder: Path, out: Path, *, patience: float | None = None) -> bool:
    """Run a night in a child, killed `patience` seconds after it began; whether that was before its end."""
    begun = PROCESSES.Event()
    home = folder.parent / "home"
    child = PROCESSES.Process(
        target=night_in_a_process, args=(str(base.directory), str(home), str(folder), str(out), begun)
    )
    child.start()
    assert begun.wait(120)
    child.join(patience)
    if was_killed := child.is_alive():
        child.kill()
        child.join()
    else:
        assert child.exitcode == 0
    return was_killed


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_no_metric(tiny_base: Base, tmp_path: Path, kills: int) -> None:
    go(tiny_base, tmp_path / "warm", tmp_path / "warm.json", patience=0)  # let the children's server import
    started = time.monotonic()
    assert not go(tiny_base, tmp_path / "whole", tmp_path / "whole.json")
    duration = time.monotonic() - started
    pick, killed = random.Random(kills), 0
    for _ in range(kills):
        patience = pick.uniform(0, 1.5 * duration / kills)
        killed += go(tiny_base, tmp_path / "cut", tmp_path / "cut.json", patience=patience)
    go(tiny_base, tmp_path / "cut", tmp_path / "cut.json")
    (whole, *rest), (cut, *cut_rest) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "cut")
    )
    assert killed >= kills / 2
    assert (len(whole), rest) == (UPDATES + 1, cut_rest)
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
