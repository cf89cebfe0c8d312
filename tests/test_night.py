"""trainer/night.py: what a night begins with; tests/test_refresh.py goes through whole ones."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from chatbot.adapters import TENSORS
from chatbot.basemodel import Base
from data import runs, versions
from data.comparisons import Snapshot
from data.database import Database
from data.errors import NotFound, Refused
from data.home import Home
from data.records import Run, Sampling
from tests.adapter_files import make_version
from tests.learners import ranked
from tests.nights import tiny_night
from trainer.night import Night, begin, with_own_seed
from trainer.progress import Progress
from trainer.team import SOLO


@pytest.fixture
def told(db: Database) -> Iterator[tuple[Run, Progress]]:
    """A run that is ours, and its progress."""
    run = runs.claim(db, "tonight", config={})
    assert run is not None
    with Progress(db, run, quiet=True) as progress:
        yield run, progress


def began(db: Database, home: Home, base: Base, told: tuple[Run, Progress], **changes: object) -> Night:
    return begin(db, home, base, tiny_night(home, **changes), *told, SOLO)


def test_a_night_begins_with_what_serves(
    db: Database, home: Home, tiny_base: Base, told: tuple[Run, Progress]
) -> None:
    assert began(db, home, tiny_base, told).parent == "base"
    make_version(db, home, tiny_base)
    versions.publish(db, "v000001", actor="test", reason="")
    assert began(db, home, tiny_base, told).parent == "v000001"


def test_a_night_samples_as_the_chat_does(
    db: Database, home: Home, tiny_base: Base, told: tuple[Run, Progress]
) -> None:
    night = began(db, home, tiny_base, told, temperature=0.7, max_new_tokens=50)
    assert night.sampling == Sampling(temperature=0.7, top_p=1.0, max_new_tokens=50)


def test_a_night_has_a_folder_of_its_own(
    db: Database, home: Home, tiny_base: Base, told: tuple[Run, Progress]
) -> None:
    assert began(db, home, tiny_base, told).folder == home.runs / told[0].id


def test_what_the_operator_gave_is_read_before_a_night_begins(
    db: Database, home: Home, tiny_base: Base, told: tuple[Run, Progress]
) -> None:
    with pytest.raises(NotFound, match="tpyo"):
        began(db, home, tiny_base, told, judging="tpyo.jsonl")


def test_a_reference_whose_files_are_gone_is_replaced_by_another_reference(
    db: Database, home: Home, tiny_base: Base, told: tuple[Run, Progress]
) -> None:
    """What serves is whole: to publish another version would mend nothing."""
    name = make_version(db, home, tiny_base).name
    versions.set_reference(db, name, actor="ada")
    (home.adapters / versions.get(db, name).path / TENSORS).unlink()
    with pytest.raises(Refused, match='are damaged - it is the reference: run "trainer reference base"'):
        began(db, home, tiny_base, told)
    versions.set_reference(db, "base", actor="ada")
    assert began(db, home, tiny_base, told).reference is None


def test_every_night_throws_dice_of_its_own_and_the_same_when_taken_up_again(
    db: Database, home: Home, tiny_base: Base, told: tuple[Run, Progress]
) -> None:
    night = began(db, home, tiny_base, told)
    turns = (ranked("ab", (1, 2), question="Why?"), ranked("cd", (1, 2), question="How?"))
    seed = with_own_seed(night, Snapshot(turns, "")).seed
    assert with_own_seed(night, Snapshot(turns, "")) == replace(night.config, seed=seed)
    other = tuple(replace(turn, ranking_id="x", created_at=5.0, replies=("e", "f")) for turn in turns)
    assert with_own_seed(night, Snapshot(other, "")).seed == seed, "what was asked is the same"
    others = (
        with_own_seed(night, Snapshot(turns[:1], "")),
        with_own_seed(night, Snapshot((*turns, turns[0]), "")),
        with_own_seed(replace(night, parent="v000001"), Snapshot(turns, "")),
        with_own_seed(replace(night, config=replace(night.config, seed=1)), Snapshot(turns, "")),
    )
    assert len({seed, *(config.seed for config in others)}) == 5


@pytest.mark.parametrize(("niceness", "share"), [(0, 0.95), (10, 2 / 3)])
def test_a_night_on_a_gpu_takes_what_is_free_and_beside_a_server_two_thirds_of_it(
    db: Database,
    home: Home,
    tiny_base: Base,
    told: tuple[Run, Progress],
    monkeypatch: pytest.MonkeyPatch,
    niceness: int,
    share: float,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr("trainer.night.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(os, "getpriority", lambda *_: niceness)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    assert began(db, home, tiny_base, told).sampling.max_new_tokens == 24
    assert limits == [pytest.approx(share * 12 / 24)]
