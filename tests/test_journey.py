"""The journey of a ranking, click to served version, as README tells it: on the tiny model, nothing faked.

One person ranks one turn; a hundred rankings of simulated raters keep it company, since one alone teaches
nothing. While the new version takes over, a turn is in flight and ends on the version it began with.
"""

import threading
import time

import pytest

from chatbot import adapters
from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.following import Follower
from chatbot.pages.board import save_ranking, shown_replies
from chatbot.pages.payload import Payload
from chatbot.runner import LlamaRunner
from chatbot.turns import Turns
from data import messages, people, rankings, runs, schedules, versions
from data.comparisons import read_snapshot
from data.database import Database
from data.home import Home
from data.records import Sampling, Schedule
from tests.nights import tiny_night
from trainer.refresh import refresh
from trainer.watch import claim_due


def test_a_ranking_travels_from_the_click_to_the_version_that_answers_the_next_turn(
    ranked: Database, home: Home, tiny_base: Base, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns(ranked, engine, max_new_tokens=24)
    person = people.add(ranked, "ada")

    # 1) A turn is sent; four replies come back, each with its version, seed and sampling.
    live = turns.send(person, "sun", replies=4)
    assert live.wait(30)
    shown = shown_replies(ranked, live.turn_id, person.id)
    assert [r.id for r in shown] == [r.message_id for r in live.replies]
    assert {r.version for r in shown} == {"base"}
    assert len({r.seed for r in shown}) == 4

    # 2) The board sends B > A = C > D; 3) the database keeps what was shown and what was said.
    places = {shown[1].id: 1, shown[0].id: 2, shown[2].id: 2, shown[3].id: 3}
    turn = messages.get(ranked, live.turn_id)
    click = {"kind": "full", "shown": [r.id for r in shown], "places": places, "key": "1", "dwell_ms": 1200}
    said = save_ranking(ranked, person, turn, Payload(click))
    assert rankings.order_text(said.placements) == "B > A = C > D"

    # 4) The schedule finds a refresh due and claims it: once.
    now = time.time()
    schedules.set_(ranked, Schedule(cron="* * * * *", zone="UTC", min_rankings=1), actor="operator")
    due = {"now": now + 120, "since": now - 60}
    run = claim_due(ranked, schedules.get(ranked), {}, **due)
    assert run is not None
    assert claim_due(ranked, schedules.get(ranked), {}, **due) is None

    # 5) The night: snapshot, reward, PPO, gate, publication; 6) the version is a directory and a row.
    run = refresh(ranked, home, tiny_base, tiny_night(home), run, quiet=True)
    assert run.state == "published", run.reason
    learned = read_snapshot(home.runs / run.id / "snapshot.jsonl").turns
    assert said.id in {t.ranking_id for t in learned}
    version = versions.get(ranked, run.version or "")
    manifest = adapters.verify(
        home.adapters / version.path,
        base_sha256=tiny_base.sha256,
        template_sha256=tiny_base.format.sha256,
        model_config=tiny_base.config,
    )
    assert (manifest.run_id, manifest.rankings) == (run.id, 101)

    # 7) A turn is in flight while the server takes the new version up; it ends on the old one.
    step, may_write = LlamaRunner.step, threading.Event()

    def held(runner: LlamaRunner, beside: int) -> None:
        assert may_write.wait(60)
        step(runner, beside)

    monkeypatch.setattr(LlamaRunner, "step", held)
    flying = turns.send(person, "moon", replies=2, sampling=Sampling(max_new_tokens=900))
    assert Follower(ranked, home, engine).follow_once()
    assert not flying.is_done
    may_write.set()
    following = turns.send(person, "star", replies=2)
    assert following.wait(30)
    assert flying.wait(60)
    assert (flying.version, following.version) == ("base", "v000001")
    assert {r.version for r in messages.replies(ranked, flying.turn_id)} == {"base"}

    # 8) Tomorrow's replies carry the version that made them.
    assert {r.version for r in messages.replies(ranked, following.turn_id)} == {"v000001"}
    assert all(r.finish_reason in ("stop", "length") for r in messages.replies(ranked, flying.turn_id))
    latest = runs.latest(ranked)
    assert latest is not None
    assert latest.version == versions.serving(ranked).current == "v000001"
