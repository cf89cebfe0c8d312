"""/metrics: the numbers a Prometheus server reads."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatbot.engine import Engine
from chatbot.metrics import Metrics
from chatbot.turns import Turns
from data import runs
from data.database import Database
from data.records import Sampling
from tests.operating import add_version
from tests.stories import a_turn, rank, somebody


def samples(metrics: Metrics) -> dict[str, float]:
    """Each sample by its name and labels."""
    families = text_string_to_metric_families(metrics.text())
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_rankings_that_teach_are_counted(db: Database) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    rank(db, ada, a_turn(db, ada, may_train=False), [1, 2, 3])
    assert samples(Metrics(db))["nightschool_rankings"] == 1


def test_many_rankings_are_not_counted_at_every_scrape(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.kept.FREE_SECONDS", 0.0)
    monkeypatch.setattr("chatbot.kept.KEPT_TIMES", 1e9)
    ada, metrics = somebody(db), Metrics(db)
    assert samples(metrics)["nightschool_rankings"] == 0
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert samples(metrics)["nightschool_rankings"] == 0


def test_refreshes_are_counted_by_how_they_ended(db: Database) -> None:
    for key, state in (("one", "published"), ("two", "refused"), ("three", "published")):
        run = runs.claim(db, key, config={})
        assert run
        runs.finish(db, run, state=state, reason="")  # type: ignore[arg-type]
    seen = samples(Metrics(db))
    assert seen["nightschool_refreshespublished"] == 2
    assert seen["nightschool_refreshesrefused"] == 1
    assert seen["nightschool_last_refresh_timestamp_seconds"] > 1e9


def test_commits_are_timed_and_what_was_undone_is_none(db: Database) -> None:
    metrics = Metrics(db)
    before = samples(metrics)["nightschool_commit_seconds_count"]
    somebody(db, "Bea")
    after = samples(metrics)["nightschool_commit_seconds_count"]
    with pytest.raises(ZeroDivisionError), db.write():
        raise ZeroDivisionError
    assert after > before == 0
    assert samples(metrics)["nightschool_commit_seconds_count"] == after


def test_the_newest_night_tells_how_far_it_went_and_how_often_it_won(db: Database) -> None:
    assert "nightschool_refresh_kl" not in samples(Metrics(db))
    for key, kl in (("one", 3.0), ("two", 5.0)):
        run = runs.claim(db, key, config={})
        assert run
        runs.log(db, run, "ppo", 0, {"kl": 0.0})
        runs.log(db, run, "ppo", 1, {"kl": kl})
        if key == "one":
            runs.log(db, run, "gate", 0, {"win_rate": 0.75})
        runs.finish(db, run, state="refused", reason="")
    seen = samples(Metrics(db))
    assert (seen["nightschool_refresh_kl"], seen["nightschool_refresh_win_rate"]) == (5.0, 0.75)


def test_an_idle_server_says_so_and_names_what_serves(db: Database, engine: Engine) -> None:
    metrics = Metrics(db)
    metrics.turns = Turns(db, engine)
    seen = samples(metrics)
    assert (seen["nightschool_requests_running"], seen["nightschool_requests_waiting"]) == (0, 0)
    assert seen["nightschool_serving_infobase"] == 1


def test_the_version_named_is_the_one_that_answers(db: Database, engine: Engine) -> None:
    metrics = Metrics(db)
    add_version(db, "v000001")
    assert not any(name.startswith("nightschool_serving") for name in samples(metrics))
    metrics.turns = Turns(db, engine)
    assert "nightschool_serving_infobase" in samples(metrics)
    engine.load("v000001", None)
    engine.serve("v000001")
    assert "nightschool_serving_infov000001" in samples(metrics)


def test_the_times_to_tokens_of_each_reply_are_noted(db: Database, engine: Engine) -> None:
    metrics = Metrics(db)
    generation = engine.submit(
        [{"role": "user", "content": "Hi"}], replies=3, sampling=Sampling(temperature=0, max_new_tokens=8)
    )
    generation.wait(60)
    metrics.count(generation)
    seen = samples(metrics)
    assert seen["nightschool_time_to_first_token_seconds_count"] == 3
    assert 0 < seen["nightschool_time_to_first_token_seconds_sum"] < 60
    assert seen["nightschool_inter_token_latency_seconds_count"] == 3
    assert 0 < seen["nightschool_inter_token_latency_seconds_sum"] < 60


@pytest.mark.parametrize("secret", ["Count for me", "one", "ada"])
def test_no_text_and_no_name_is_in_the_metrics(db: Database, secret: str) -> None:
    ada = somebody(db)
    rank(db, ada, a_turn(db, ada), [1, 2, 3])
    assert not re.search(rf"\b{secret}\b", re.sub(r"# .*", "", Metrics(db).text()))
