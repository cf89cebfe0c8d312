"""runs.py: a slot has one claimant, a lease one holder, and what a run said stays."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from data import rankings, runs
from data.database import Database
from data.errors import NotFound, Refused
from data.home import Home
from data.records import Run
from tests.stories import a_turn, frozen, rank, somebody


def claimed(db: Database, key: str = "tonight", now: float | None = None) -> Run:
    run = runs.claim(db, key, config={"beta": 0.05}, now=now)
    assert run is not None
    return run


def test_a_claimed_run_runs_under_a_lease(db: Database) -> None:
    run = claimed(db, "2026-11-21T03:30 Europe/Berlin", now=1000.0)
    assert (run.key, run.state, run.lease_until) == ("2026-11-21T03:30 Europe/Berlin", "running", 1060.0)
    assert run.config == {"beta": 0.05}
    assert runs.get(db, run.id) == run
    assert runs.latest(db) == run


@pytest.mark.parametrize("kind", ["manual", "reward", "sft"])
def test_a_run_says_what_kind_it_is(db: Database, kind: str) -> None:
    assert claimed(db, runs.new_key(kind)).kind == kind


def test_a_run_of_the_schedule_says_so(db: Database) -> None:
    assert claimed(db, "2026-11-21T03:30 Europe/Berlin").kind == "slot"


def test_a_slot_is_claimed_once(db: Database) -> None:
    run = claimed(db)
    runs.finish(db, run, state="published", reason="It won.")
    assert runs.claim(db, "tonight", config={}) is None


def test_of_many_claimants_one_gets_the_slot(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: runs.claim(db, "tonight", config={}), range(16)))
    assert sum(run is not None for run in found) == 1


def test_a_living_lease_keeps_other_runs_out_and_an_expired_one_is_interrupted(db: Database) -> None:
    first = claimed(db, now=1000.0)
    assert runs.claim(db, "manual-1", config={}, now=1059.0) is None
    second = claimed(db, "manual-1", now=1060.0)
    assert second.fencing_token > first.fencing_token
    written_off = runs.get(db, first.id)
    assert (written_off.state, written_off.finished_at) == ("interrupted", 1060.0)
    assert "lease expired" in written_off.reason


def test_an_interrupted_run_is_taken_up_again_under_a_new_token(db: Database) -> None:
    run = claimed(db, now=1000.0)
    again = runs.resume(db, run.id, now=1100.0)
    assert again is not None and (again.id, again.state, again.finished_at) == (run.id, "running", None)
    assert again.fencing_token > run.fencing_token and again.lease_until == 1160.0
    with pytest.raises(Refused, match="its lease was lost"):
        runs.finish(db, run, state="published", reason="Too late.")


def test_a_run_is_not_taken_up_while_any_run_lives(db: Database) -> None:
    run = claimed(db, now=1000.0)
    assert runs.resume(db, run.id, now=1010.0) is None
    claimed(db, "next", now=1100.0)
    assert runs.resume(db, run.id, now=1110.0) is None


def test_a_run_that_came_to_its_end_is_not_taken_up(db: Database) -> None:
    run = claimed(db)
    runs.finish(db, run, state="published", reason="It won.")
    with pytest.raises(Refused, match=r"over \(published\) - start a new refresh"):
        runs.resume(db, run.id)


def test_a_heartbeat_renews_the_lease_until_it_is_lost(db: Database) -> None:
    run = claimed(db, now=1000.0)
    assert runs.heartbeat(db, run, now=1050.0)
    assert runs.get(db, run.id).lease_until == 1110.0
    claimed(db, "next", now=1200.0)
    assert not runs.heartbeat(db, run, now=1201.0)


def test_a_run_tells_what_it_does(db: Database) -> None:
    run = claimed(db)
    runs.report(db, run, stage="ppo", progress=1.7, eta_seconds=60.0, message="Update 3 of 15.")
    now = runs.get(db, run.id)
    assert (now.stage, now.progress, now.eta_seconds, now.message) == ("ppo", 1.0, 60.0, "Update 3 of 15.")


def test_a_finished_run_keeps_its_reason_and_hears_no_more_reports(db: Database) -> None:
    run = claimed(db)
    done = runs.finish(db, run, state="refused", reason="It won 48 %.", version="v000001")
    assert (done.state, done.reason, done.version, done.progress) == (
        "refused",
        "It won 48 %.",
        "v000001",
        1.0,
    )
    assert done.finished_at is not None
    runs.report(db, run, stage="gate", progress=0.5)
    assert runs.get(db, run.id) == done


def test_who_lost_a_run_to_another_process_changes_none_of_its_rows(db: Database) -> None:
    late = claimed(db, now=1000.0)
    again = runs.resume(db, late.id, now=1100.0)
    assert again is not None
    runs.report(db, again, stage="ppo", progress=0.5, message="Update 3 of 15.")
    runs.log(db, again, "ppo", 3, {"kl": 0.4})
    before = runs.get(db, late.id)
    runs.report(db, late, stage="reward", progress=0.1, message="Training.")
    runs.log(db, late, "ppo", 3, {"kl": 9.0, "score": 1.0})
    assert runs.get(db, late.id) == before
    assert [(m.name, m.value) for m in runs.metrics(db, late.id)] == [("kl", 0.4)]


def test_a_stale_token_finishes_nothing(db: Database) -> None:
    run = claimed(db)
    with pytest.raises(Refused):
        runs.finish(db, replace(run, fencing_token=run.fencing_token + 1), state="failed", reason="")
    runs.finish(db, run, state="failed", reason="Out of memory.")
    with pytest.raises(Refused, match=r"over \(failed\)"):
        runs.finish(db, run, state="published", reason="")
    assert runs.get(db, run.id).state == "failed"


def test_an_unknown_run_is_a_sentence(db: Database) -> None:
    with pytest.raises(NotFound, match="No run 'x' - run \"trainer runs\""):
        runs.get(db, "x")
    assert runs.latest(db) is None


def test_runs_are_listed_newest_first(db: Database) -> None:
    for key in ("one", "two", "three"):
        run = claimed(db, key)
        runs.finish(db, run, state="nothing_to_learn", reason="No rankings.")
    assert [run.key for run in runs.list_all(db)] == ["three", "two", "one"]
    assert [run.key for run in runs.list_all(db, limit=1)] == ["three"]


def test_metrics_come_back_in_order_and_replace_themselves(db: Database) -> None:
    run = claimed(db)
    runs.log(db, run, "ppo", 1, {"kl": 0.4, "score": 1})
    runs.log(db, run, "ppo", 0, {"kl": 0.1})
    runs.log(db, run, "ppo", 0, {"kl": 0.2})
    runs.log(db, run, "reward", 0, {"loss": math.inf, "accuracy": math.nan})
    assert [(m.step, m.name, m.value) for m in runs.metrics(db, run.id, "ppo")] == [
        (0, "kl", 0.2),
        (1, "kl", 0.4),
        (1, "score", 1.0),
    ]
    accuracy, loss = runs.metrics(db, run.id, "reward")
    assert math.isnan(accuracy.value)
    assert loss.value == math.inf
    assert len(runs.metrics(db, run.id)) == 5


def test_the_metrics_of_what_begins_anew_go_and_no_others(db: Database) -> None:
    late, other = claimed(db, now=1000.0), claimed(db, "other", now=2000.0)
    run = runs.resume(db, late.id, now=3000.0)
    assert run is not None
    for one in (run, other):
        for stage in ("ppo", "reward"):
            runs.log(db, one, stage, 0, {"kl": 0.1})
    runs.forget_metrics(db, late)  # its lease is lost
    runs.forget_metrics(db, run, "ppo")
    assert [m.stage for m in runs.metrics(db, run.id)] == ["reward"]
    runs.forget_metrics(db, run)
    assert runs.metrics(db, run.id) == [] and len(runs.metrics(db, other.id)) == 2


def test_only_a_running_run_can_be_cancelled(db: Database) -> None:
    run = claimed(db)
    assert runs.request_cancel(db, run.id).cancel_requested
    runs.finish(db, run, state="cancelled", reason="An operator asked.")
    with pytest.raises(Refused, match="nothing to cancel"):
        runs.request_cancel(db, run.id)


def test_rankings_after_the_snapshot_of_a_judged_run_are_new(db: Database, home: Home) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    run = claimed(db)
    snapshot = frozen(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    runs.set_snapshot(db, run.id, snapshot)
    assert runs.learned_until(db) is None
    runs.finish(db, run, state="published", reason="It won.")
    assert runs.get(db, run.id).snapshot_hash == snapshot.sha256
    assert rankings.count(db, after=runs.learned_until(db)) == 1


def test_a_ranking_of_a_clock_that_was_ahead_makes_none_after_it_old(db: Database) -> None:
    ada = somebody(db)
    ranking = rank(db, ada, a_turn(db, ada), [1, 2, 3])
    with db.write() as conn:
        conn.execute(
            "UPDATE rankings SET created_at = ? WHERE id = ?", (time.time() + 30 * 86400, ranking.id)
        )
    run = claimed(db)
    runs.set_snapshot(db, run.id, frozen(db))
    runs.finish(db, run, state="published", reason="It won.")
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert rankings.count(db, after=runs.learned_until(db)) == 2, "that one, and the one after it"


def test_a_run_of_a_clock_that_was_ahead_makes_no_ranking_old(db: Database) -> None:
    now = time.time()
    for key, seen in (("before", now - 60), ("ahead", now + 30 * 86400)):
        run = runs.claim(db, key, config={})
        assert run is not None
        with db.write() as conn:
            conn.execute("UPDATE runs SET snapshot_at = ? WHERE id = ?", (seen, run.id))
        runs.finish(db, run, state="published", reason="It won.")
    assert runs.learned_until(db) == now - 60
    assert runs.learned_until(db, now + 31 * 86400) == now + 30 * 86400


def test_a_run_that_is_taken_up_has_seen_no_more_than_before(db: Database) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    run, snapshot = claimed(db), frozen(db)
    runs.set_snapshot(db, run.id, snapshot)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    runs.set_snapshot(db, run.id, snapshot, newest=time.time())
    runs.finish(db, run, state="published", reason="It won.")
    assert rankings.count(db, after=runs.learned_until(db)) == 1


def test_a_failed_run_has_seen_nothing(db: Database) -> None:
    run = claimed(db)
    runs.set_snapshot(db, run.id, frozen(db))
    runs.finish(db, run, state="failed", reason="The disk was full.")
    assert runs.learned_until(db) is None
