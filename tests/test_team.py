"""Several processes take the steps that one would have taken, and tell each other the same numbers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from chatbot.basemodel import Base
from chatbot.engine import Engine
from data import runs
from data.database import Database
from data.errors import Refused
from data.home import Home
from data.runfolder import TAKEN_UP
from tests.flags import to_flags
from tests.nights import rank_by_taste, tiny_night
from trainer.team import SOLO, Deserted, Team, join


def meet(rank: int, folder: str) -> Team:
    """One of two processes that find each other by a file: a port that is free now may be taken then."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    return Team(rank, 2)


def member(rank: int, folder: str) -> None:
    """One process of a team: what it heard from the other, as a file."""
    team = meet(rank, folder)
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.full((2,), rank + 1.0)  # and nobody has a gradient of the second
    team.sum_gradients(parameters)
    heard = {
        "share": team.share(range(5)),
        "collected": team.collect(team.share(["a", "b", "c", "d", "e"])),
        "sum": team.sum([rank, 10.0]),
        "told": team.broadcast(f"by {rank}"),
        "gradients": [p.grad.tolist() for p in parameters if p.grad is not None],
    }
    team.wait()
    team.leave()
    team.leave()  # who has left has left
    heard["are together"] = torch.distributed.is_initialized()
    Path(folder, f"{rank}.json").write_text(json.dumps(heard))


def test_gradients_of_one_process_are_their_own_sum() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert SOLO.summed_norm([parameter, torch.nn.Parameter(torch.zeros(1))]) == 5.0


def test_what_two_members_hear_is_the_same(tmp_path: Path) -> None:
    mp.spawn(member, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    chief, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (chief.pop("share"), other.pop("share")) == ([0, 2, 4], [1, 3])
    assert chief == other
    assert chief["collected"] == ["a", "b", "c", "d", "e"]
    assert not chief["are together"]
    assert chief["sum"] == [1.0, 20.0] and chief["told"] == "by 0"
    assert chief["gradients"] == [[3.0, 3.0], [0.0, 0.0, 0.0]]


def member_that_ends(rank: int, folder: str) -> None:
    """The chief of two hears what it hears where the other one is gone."""
    team = meet(rank, folder)
    team.wait()
    if rank == 0:
        with pytest.raises(Deserted, match="Another process of the team ended"):
            team.sum([1.0])
        with pytest.raises(Deserted):
            team.sum_gradients([torch.nn.Parameter(torch.zeros(2))])
        Path(folder, "heard").touch()


def test_a_fault_of_the_gpu_is_nobody_elses_end_and_what_else_is_said_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: Exception) -> Callable[..., None]:
        def gather(found: list[Any], value: Any) -> None:
            raise error

        return gather

    fault = torch.AcceleratorError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(torch.distributed, "all_gather_object", fail(fault))
    with pytest.raises(torch.AcceleratorError):
        Team(0, 2).broadcast(1)
    monkeypatch.setattr(torch.distributed, "all_gather_object", fail(RuntimeError("Connection reset")))
    with pytest.raises(Deserted):
        Team(0, 2).broadcast(1)
    assert "Connection reset" in caplog.text


def test_whose_member_is_gone_hears_so_in_a_sentence(tmp_path: Path) -> None:
    mp.spawn(member_that_ends, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    assert (tmp_path / "heard").exists()


WAITS = """
import torch
from trainer.team import join

team = join()
backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
print(team.rank, team.size, backend.options._timeout)
torch.distributed.destroy_process_group()
"""


def test_members_wait_for_hours_while_the_chief_works_alone() -> None:
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", WAITS], env=environment, capture_output=True, text=True)
    assert done.stdout == "0 1 12:00:00\n", done.stderr[-3000:]


@pytest.mark.parametrize(("gpus", "is_said"), [(1, "1 is here - launch 1,"), (3, "3 are here - launch 3,")])
def test_more_processes_than_gpus_are_refused_before_they_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, gpus: int, is_said: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(Refused, match=f"4 processes need a GPU each and {is_said} by --num_processes"):
        join()


def test_one_process_alone_hears_itself() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    SOLO.sum_gradients([parameter])
    SOLO.wait()
    SOLO.leave()
    assert SOLO.is_chief and parameter.grad is None
    assert SOLO.share("abc") == ["a", "b", "c"] == SOLO.collect(["a", "b", "c"])
    assert SOLO.sum([1.5]) == [1.5] and SOLO.broadcast("x") == "x"


def launcher(processes: int) -> list[str]:
    """What launches so many of a module that is named after it; --multi_gpu: on a CPU it takes gloo."""
    flags = [f"--num_processes={processes}", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
    flags += ["--dynamo_backend=no", "--main_process_port=0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m"]


def a_refresh(home: Path, model: Path, config: Any, processes: int) -> Any:
    """The figures of `trainer refresh` in its own process, or in several by `accelerate launch`."""
    launched = launcher(processes) if processes > 1 else [sys.executable, "-m"]
    command = [*launched, "trainer", "refresh", f"--model={model}"]
    environment = {**os.environ, "NIGHTSCHOOL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *to_flags(config)], env=environment, capture_output=True, text=True)
    db = Database(home / "nightschool.db")
    try:
        (run,) = runs.list_all(db)
        assert run.state in ("published", "refused"), done.stderr[-3000:]
        return {(m.stage, m.step, m.name): m.value for m in runs.metrics(db, run.id)}
    finally:
        db.close()


@pytest.mark.timeout(900)  # a minute and a half of one process on a machine with nothing else to do
def test_two_processes_learn_what_one_learns(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    engine = Engine(tiny_base, precision="float32")
    engine.start()
    rank_by_taste(db, engine, count=60)
    engine.close()
    # Adam makes a rounding error as large as the learning rate, and then another token may be drawn.
    config = tiny_night(
        home, members=2, updates=2, ppo_lr=1e-4, reward_epochs=2, reward_steps=1, gate_prompts=8
    )
    other = tmp_path / "other"
    other.mkdir()
    db.backup(other / "nightschool.db")  # a plain copy of an open database may be torn
    one = a_refresh(home.root, tiny_base.directory, config, 1)
    two = a_refresh(other, tiny_base.directory, config, 2)
    figures = {key for key in one if "seconds" not in key[2]}
    assert figures == {key for key in two if "seconds" not in key[2]}
    assert ("ppo", 2, "kl") in figures, "the judge is fit to judge, so both practise"
    counted = {key for key in figures if "fraction" in key[2]}  # a token may stand right on the clip
    for chosen, tolerance in ((figures - counted, 1e-4), (counted, 0.01)):
        assert {k: two[k] for k in chosen} == pytest.approx({k: one[k] for k in chosen}, abs=tolerance)
    assert list((other / "runs").glob(f"*/{TAKEN_UP}")), "a watcher is not to go on with it alone"
    assert not list(home.runs.glob(f"*/{TAKEN_UP}"))
