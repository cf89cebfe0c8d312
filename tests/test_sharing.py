"""While a refresh runs, chat has half of the cores; by day all."""

import time

import pytest
import torch

from chatbot.engine import Engine
from chatbot.runner import LlamaRunner
from chatbot.sharing import Sharing
from data import runs
from data.database import Database
from data.records import Sampling


@pytest.mark.parametrize(("threads", "half"), [(8, 4), (2, 1), (1, 1)])
def test_a_refresh_takes_half_of_the_cores_for_as_long_as_it_runs(
    db: Database, engine: Engine, threads: int, half: int
) -> None:
    sharing = Sharing(db, engine, threads)
    sharing.share_once()
    assert engine.threads == threads
    run = runs.claim(db, "tonight", config={})
    assert run is not None
    sharing.share_once()
    assert engine.threads == half
    runs.finish(db, run, state="refused", reason="It wins too little.")
    sharing.share_once()
    assert engine.threads == threads


def test_a_refresh_whose_process_was_killed_takes_no_core(db: Database, engine: Engine) -> None:
    sharing = Sharing(db, engine, 8)
    assert runs.claim(db, "tonight", config={}, now=time.time() - 3600)
    sharing.share_once()
    assert engine.threads == 8


def test_the_engine_s_thread_computes_with_as_many_as_it_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = LlamaRunner.step

    def noted(self: LlamaRunner, beside: int) -> None:
        seen.append(torch.get_num_threads())
        step(self, beside)

    monkeypatch.setattr(LlamaRunner, "step", noted)
    ours = torch.get_num_threads()
    for threads in (1, 3, 1):
        engine.threads = threads
        generation = engine.submit([{"role": "user", "content": "Hi"}], sampling=Sampling(max_new_tokens=2))
        assert generation.wait(60)
        assert seen[-1] == threads
    torch.set_num_threads(ours)


def test_it_looks_by_itself_and_ends_when_told(db: Database, engine: Engine) -> None:
    sharing = Sharing(db, engine, 6)
    sharing.start()
    deadline = time.monotonic() + 30
    while engine.threads != 6:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sharing.close()
    engine.threads = 1
