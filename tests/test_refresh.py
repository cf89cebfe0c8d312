"""trainer/refresh.py: a whole night on the tiny model, how it ends, and what it leaves behind."""

import json

import pytest

from chatbot.basemodel import Base, load_base
from data import runs, versions
from data.database import Database
from data.errors import Refused
from data.home import Home
from tests.adapter_files import make_version
from tests.nights import a_night
from tests.stories import a_turn, rank, somebody
from tests.tiny import make_tiny_model
from trainer.progress import Cancelled, Progress
from trainer.publish import verify_for
from trainer.refresh import NothingToLearn


def test_a_night_publishes_a_version_that_serves(ranked: Database, home: Home, tiny_base: Base) -> None:
    run = a_night(ranked, home, tiny_base)

    assert run.state == "published", run.reason
    assert versions.serving(ranked).current == run.version == "v000001"
    assert "The judge prefers the candidate" in run.reason
    version = versions.get(ranked, "v000001")
    assert (version.parent, version.rankings, version.run_id) == ("base", 100, run.id)
    verify_for(tiny_base, home.adapters / version.path)


def test_a_night_writes_down_what_it_measured(ranked: Database, home: Home, tiny_base: Base) -> None:
    run = a_night(ranked, home, tiny_base)

    report = json.loads((home.runs / run.id / "report.json").read_text())
    assert report == versions.get(ranked, "v000001").report
    assert report["judge"]["accuracy_interval"][0] > 0.5
    assert report["parts"]["A"] + report["parts"]["B"] == 100
    assert len(report["gate"]["samples"]) == 10
    kl = [m.value for m in runs.metrics(ranked, run.id, "ppo") if m.name == "kl"]
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert kl[-1] > 0.1
    assert (run.progress, run.eta_seconds) == (1.0, None)


def test_a_policy_trained_with_the_reward_s_sign_flipped_is_refused(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    run = a_night(ranked, home, tiny_base, score_sign=-1.0)

    assert run.state == "refused"
    assert "The judge prefers the candidate on only" in run.reason
    assert versions.serving(ranked).current == "base"
    assert versions.get(ranked, "v000001").status == "refused"


def test_a_second_night_goes_on_from_what_serves(ranked: Database, home: Home, tiny_base: Base) -> None:
    a_night(ranked, home, tiny_base)

    run = a_night(ranked, home, tiny_base, updates=2, seed=1)

    assert run.state in ("published", "refused")
    first = [m.value for m in runs.metrics(ranked, run.id, "ppo") if (m.name, m.step) == ("kl", 0)]
    start = [m.value for m in runs.metrics(ranked, run.id, "ppo") if (m.name, m.step) == ("start_kl", 0)]
    assert first[0] > 0.1
    assert start[0] == pytest.approx(0, abs=1e-3)


def test_the_same_seed_gives_the_same_night(ranked: Database, home: Home, tiny_base: Base) -> None:
    def curve(run_id: str) -> list[float]:
        return [m.value for m in runs.metrics(ranked, run_id, "ppo") if m.name in ("kl", "score")]

    one = a_night(ranked, home, tiny_base, updates=2, seed=3, gate_prompts=4)
    if one.version and versions.serving(ranked).current == one.version:
        versions.rollback(ranked, actor="test")
    two = a_night(ranked, home, tiny_base, updates=2, seed=3, gate_prompts=4)

    assert curve(one.id) == pytest.approx(curve(two.id), abs=1e-4)


def test_an_empty_database_is_nothing_to_learn(db: Database, home: Home, tiny_base: Base) -> None:
    with pytest.raises(NothingToLearn, match="There are 0 rankings to learn from and a night needs 12"):
        a_night(db, home, tiny_base)

    run = runs.latest(db)
    assert run is not None
    assert (run.state, run.version) == ("nothing_to_learn", None)


def test_one_ranking_is_not_enough(db: Database, home: Home, tiny_base: Base) -> None:
    person = somebody(db)
    rank(db, person, a_turn(db, person), (1, 2, 3))

    with pytest.raises(NothingToLearn, match="There is 1 ranking to learn from"):
        a_night(db, home, tiny_base)


def test_ties_alone_teach_nothing(db: Database, home: Home, tiny_base: Base) -> None:
    person = somebody(db)
    for _ in range(30):
        rank(db, person, a_turn(db, person), (1, 1, 1))

    with pytest.raises(NothingToLearn, match="None of the 30 rankings lets the reward model prefer"):
        a_night(db, home, tiny_base)


def test_a_version_of_another_base_is_not_trained_on(
    ranked: Database, home: Home, tiny_base: Base, tmp_path: object
) -> None:
    other = load_base(str(make_tiny_model(home.root / "other", seed=9)), home, lambda text: None)
    make_version(ranked, home, other)
    versions.publish(ranked, "v000001", actor="test", reason="")

    with pytest.raises(Refused, match="v000001 serves on another base model"):
        a_night(ranked, home, tiny_base)


def test_a_cancelled_night_leaves_what_serves(
    ranked: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = Progress.enter

    def cancel_at_ppo(self: Progress, stage: str, message: str) -> None:
        if stage == "ppo" and (run := runs.latest(ranked)):
            runs.request_cancel(ranked, run.id)
        enter(self, stage, message)

    monkeypatch.setattr(Progress, "enter", cancel_at_ppo)
    with pytest.raises(Cancelled):
        a_night(ranked, home, tiny_base)

    run = runs.latest(ranked)
    assert run is not None
    assert run.state == "cancelled"
    assert versions.serving(ranked).current == "base"


def test_a_night_that_breaks_is_recorded_with_its_reason(
    ranked: Database, home: Home, tiny_base: Base
) -> None:
    with pytest.raises(Exception, match="nowhere"):
        a_night(ranked, home, tiny_base, practice="nowhere.jsonl")

    run = runs.latest(ranked)
    assert run is not None
    assert run.state == "failed"
    assert "nowhere.jsonl" in run.reason
