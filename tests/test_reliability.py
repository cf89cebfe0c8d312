"""trainer/reliability.py: who errs weighs less, who is only little known does not."""

import random
from dataclasses import replace
from typing import Any

import pytest

from data.comparisons import weigh
from data.records import Version
from tests.learners import predicted, ranked
from trainer.reliability import FLOOR, reliabilities, relied_on


def a_version(name: str, report: dict[str, Any]) -> Version:
    return Version(
        name=name,
        parent="base",
        base_model="tiny",
        base_sha256="0" * 64,
        path=name,
        sha256="1" * 64,
        created_at=0.0,
        run_id=None,
        rankings=0,
        report=report,
        status="refused",
    )


def test_it_finds_how_often_a_person_is_right_whatever_the_model_is_worth() -> None:
    dice = random.Random(0)
    right = {"ann": 0.9, "bob": 0.9, "cai": 0.9, "dee": 0.9, "eve": 0.65}
    for model in (0.7, 0.95):
        agreed = {
            person: sum((dice.random() < q) == (dice.random() < model) for _ in range(40_000)) / 40_000
            for person, q in right.items()
        }
        found = reliabilities(predicted(agreed, pairs=40_000))
        assert found["eve"] == pytest.approx((2 * 0.65 - 1) / (2 * 0.9 - 1), abs=0.05)
        assert all(found[person] > 0.93 for person in ("ann", "bob", "cai", "dee"))


def test_tossing_a_coin_or_turning_all_round_leaves_the_least() -> None:
    found = reliabilities(predicted({"ann": 0.8, "bob": 0.8, "cai": 0.8, "coin": 0.5, "turned": 0.2}))
    assert found["coin"] == found["turned"] == FLOOR < 1.0 == found["ann"]


def test_a_few_pairs_tell_little() -> None:
    report = predicted({"ann": 0.8, "bob": 0.8, "cai": 0.8})
    for model in report.values():
        model["accuracy_by_person"]["new"] = {"accuracy": 0.0, "pairs": 3}
    assert 0.7 < reliabilities(report)["new"] < 1.0


def test_below_four_people_nobody_tells_who_errs() -> None:
    assert reliabilities(predicted({"ann": 0.9, "bob": 0.9, "cai": 0.5})) == {}


def test_models_that_agree_with_nobody_say_nothing_of_anybody() -> None:
    found = reliabilities(predicted({"ann": 0.52, "bob": 0.51, "cai": 0.53, "dee": 0.4}))
    assert set(found.values()) == {1.0}


def test_a_night_without_reward_models_measured_nobody() -> None:
    assert reliabilities({}) == reliabilities({"reward": None, "judge": {}}) == {}


def test_a_night_that_did_not_ask_about_somebody_leaves_what_is_known_of_them() -> None:
    """Each night examines its newest rankings only, and nobody is trusted for having been away."""
    people = dict.fromkeys(("ann", "bob", "cai", "dee"), 0.8)
    turns = [replace(ranked(["a", "b"], (1, 2)), person_id=person) for person in ("ann", "troll")]
    before = a_version("v000001", predicted({**people, "troll": 0.5}))
    since = [a_version(f"v00000{i}", predicted(people)) for i in (2, 3)]
    assert [turn.reliability for turn in relied_on(turns, [before, *since])] == [1.0, FLOOR]
    mended = a_version("v000004", predicted({**people, "troll": 0.8}))
    assert [turn.reliability for turn in relied_on(turns, [before, *since, mended])] == [1.0, 1.0]


def test_the_newest_night_that_measured_a_person_weighs_them() -> None:
    people = ("ann", "bob", "cai", "dee")
    turns = [replace(ranked(["a", "b"], (1, 2)), person_id=person) for person in people * 2]
    turns[0] = replace(turns[0], source="imported")
    strangers = {f"stranger {i}": 0.9 for i in range(4)}
    past = [
        a_version("v000001", predicted({**dict.fromkeys(people, 0.9), "ann": 0.5})),
        a_version("v000002", predicted({**dict.fromkeys(people, 0.9), "dee": 0.5})),
        a_version("v000003", predicted(strangers)),
        a_version("v000004", {}),
    ]
    found = weigh(relied_on(turns, past))
    one = found[1].weight
    assert [turn.weight for turn in found if turn.person_id == "dee"] == pytest.approx([FLOOR * one] * 2)
    assert {turn.weight for turn in found if turn.person_id in ("bob", "cai")} == {one}
    assert found[0].reliability == 1.0
    stranger = replace(turns[0], person_id="stranger 1")
    assert relied_on([*turns, stranger], past) == [*relied_on(turns, past), stranger]
    assert {turn.reliability for turn in relied_on(turns, [])} == {1.0}
