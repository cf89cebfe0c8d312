"""kill -9 at random moments of a PPO run: what is taken up again gives the metrics of a run left in peace."""

import json
import multiprocessing
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from signal import SIGKILL

import pytest
import torch

from chatbot.basemodel import Base, load_base
from data.home import open_home
from tests.test_checkpoint import a_night, figures

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.test_checkpoint"])  # a child begins with everything imported
UPDATES = 12


class Resting(list[int]):
    """The updates that a night makes; after `last` it waits to be killed, so that it is not over before."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def append(self, update: int) -> None:
        super().append(update)
        if update > self.last:
            time.sleep(120)


def night_in_a_process(
    model: str, home: str, checkpoints: str, out: str, begun: Event, kill_at: int | None
) -> None:
    torch.set_num_threads(1)
    base = load_base(model, open_home(Path(home)), lambda text: None)
    begun.set()
    made = Resting(kill_at) if kill_at is not None else None
    result = a_night(base, Path(checkpoints), updates=UPDATES, made=made)
    Path(out).write_text(json.dumps([figures(result), result.best_update, result.notes]))


def go(base: Base, folder: Path, out: Path, *, kill_at: int | None = None, later: float = 0.0) -> int:
    """Run a night in a child; its exit code.

    It is killed `later` seconds after it has begun to write the checkpoint of update `kill_at`, or one after.
    """
    begun = PROCESSES.Event()
    home = folder.parent / "home"
    child = PROCESSES.Process(
        target=night_in_a_process,
        args=(str(base.directory), str(home), str(folder), str(out), begun, kill_at),
    )
    child.start()
    assert begun.wait(120)
    if kill_at is not None:
        while child.is_alive() and not any(
            p.name >= f"update-{kill_at:05d}" for p in folder.glob("update-*")
        ):
            time.sleep(0.001)
        time.sleep(later)
        child.kill()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_no_metric(tiny_base: Base, tmp_path: Path, kills: int) -> None:
    assert go(tiny_base, tmp_path / "whole", tmp_path / "whole.json") == 0
    pick = random.Random(0)
    for update in sorted(pick.sample(range(1, UPDATES - 1), kills)):
        later = pick.uniform(0, 0.02)  # while it is written, or the next update is under way
        assert go(tiny_base, tmp_path / "cut", tmp_path / "cut.json", kill_at=update, later=later) == -SIGKILL
    assert go(tiny_base, tmp_path / "cut", tmp_path / "cut.json") == 0
    (whole, *rest), (cut, *cut_rest) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "cut")
    )
    assert (len(whole), rest) == (UPDATES + 1, cut_rest)
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
