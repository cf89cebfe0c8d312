"""Simulated raters rank real replies by a known taste, through the code of a click."""

import random
from collections.abc import Iterator

import pytest

from chatbot.engine import Engine
from chatbot.turns import Turns
from data import messages, people, rankings
from data.database import Database
from data.errors import Refused
from data.prompts import practice_prompts
from data.records import Prompt
from data.snapshots import taught_turns
from trainer.raters import Simulation, _send, _that_fit, places, simulate
from trainer.tastes import EMPTY, concise


@pytest.fixture
def turns(db: Database, engine: Engine) -> Iterator[Turns]:
    """Short replies, so that a turn of the tiny model takes a moment; the same ones every time."""
    random.seed(0)
    running = Turns(db, engine, max_new_tokens=12)
    yield running
    running.close()


def test_scores_within_the_margin_of_a_places_best_share_it() -> None:
    assert places([3.0, 1.0, 2.95, 0.0], 0.1) == [1, 2, 1, 3]
    assert places([1.0, 1.0, 1.0], 0.0) == [1, 1, 1]
    assert places([1.0, 0.95, 0.9], 0.06) == [1, 1, 2]  # a chain of near scores is no single place


def test_the_spread_is_not_drowned_by_one_extreme() -> None:
    draw = random.Random(0)
    scores = [draw.gauss(0, 10) for _ in range(400)]
    assert Simulation(scores=[*scores, EMPTY]).spread == pytest.approx(10, rel=0.2)
    assert Simulation(scores=[0.0] * 20 + [1.0]).spread > 0 and Simulation(scores=[1.0]).spread == 0


def test_simulated_people_rank_as_the_taste_says(db: Database, turns: Turns) -> None:
    simulate(db, turns, taste=lambda _, reply: float(len(reply)), turns_count=6, noise=0.0, people=3)
    ranked = taught_turns(db)
    assert len(ranked) == 6 and len({turn.person_id for turn in ranked}) == 3
    for turn in ranked:
        assert turn.source == "simulated" and turn.kind == "full" and len(turn.replies) == 4
        by_place = [len(reply) for _, reply in sorted(zip(turn.places, turn.replies, strict=True))]
        assert by_place[0] == max(by_place) and by_place[-1] <= by_place[0]
        assert set(turn.versions) == {"base"}


def test_flipped_rankings_put_the_worst_first(db: Database, turns: Turns) -> None:
    def length(_: object, reply: str) -> float:
        return float(len(reply))

    simulate(db, turns, taste=length, turns_count=5, noise=0.0, people=2, flipped=1.0)
    for turn in taught_turns(db):
        by_place = [len(reply) for _, reply in sorted(zip(turn.places, turn.replies, strict=True))]
        assert by_place[0] == min(by_place)
    with pytest.raises(Refused, match="flips from 0 to 1"):
        simulate(db, turns, taste=length, turns_count=1, flipped=1.5)


def test_the_figures_of_a_simulation_add_up(db: Database, turns: Turns) -> None:
    seen: list[tuple[int, int]] = []
    done = simulate(
        db, turns, taste=concise, turns_count=5, replies=3, progress=lambda *told: seen.append(told)
    )
    assert seen == [(n, 5) for n in range(1, 6)]
    assert done.turns == rankings.count(db) == 5 and done.pairs == 15 and len(done.scores) == 15
    assert done.report()["versions"] == ["base"]


def test_the_same_people_come_again_and_are_never_human(db: Database, turns: Turns) -> None:
    for seed in (0, 1):
        simulate(db, turns, taste=concise, turns_count=2, replies=2, people=2, seed=seed)
    assert people.count(db, kind="simulated") == 2 and people.count(db) == 0


def test_a_prompt_with_a_history_is_played_into_its_conversation(db: Database, turns: Turns) -> None:
    history = tuple(
        {"role": role, "content": text}
        for role, text in [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Why?")]
    )
    person = people.add(db, "Simulated rater 1", kind="simulated")
    live = _send(db, turns, person, Prompt(history, None, "practice"), 2)
    assert live.wait(30)
    path = messages.path_to(db, live.turn_id)
    assert [(message.role, message.content) for message in path] == [
        (m["role"], m["content"]) for m in history
    ]
    assert path[2].version is None


def test_prompts_are_not_asked_twice_before_all_were_asked(db: Database, turns: Turns) -> None:
    simulate(db, turns, taste=concise, turns_count=20, replies=2)
    asked = [turn.prompt for turn in taught_turns(db)]
    assert len({str(prompt) for prompt in asked}) == 20
    assert {prompt[-1]["content"] for prompt in asked} <= {
        p.messages[-1]["content"] for p in practice_prompts()
    }


def test_prompts_too_long_for_the_model_are_left_out(db: Database, engine: Engine) -> None:
    fitting = _that_fit(practice_prompts(), Turns(db, engine, max_new_tokens=624))
    assert 0 < len(fitting) < len(practice_prompts())  # the tiny model reads 1,024 bytes
    assert all(engine.base.format.fit(prompt.messages, 400).dropped == 0 for prompt in fitting)
    longest = max(practice_prompts(), key=lambda prompt: len(str(prompt.messages)))
    with pytest.raises(Refused, match="No practice prompt fits in 64 tokens - use a model"):
        _that_fit([longest], Turns(db, engine, max_new_tokens=960))


@pytest.mark.parametrize("wrong", [{"replies": 1}, {"replies": 10}, {"turns_count": 0}, {"people": 0}])
def test_a_simulation_of_nothing_is_refused(wrong: dict[str, int], db: Database, turns: Turns) -> None:
    with pytest.raises(Refused, match=" - use "):
        simulate(db, turns, taste=concise, **{"turns_count": 1, **wrong})


def test_a_human_with_a_raters_name_is_not_used(db: Database, turns: Turns) -> None:
    people.add(db, "Simulated rater 1")
    with pytest.raises(Refused, match="give them another name"):
        simulate(db, turns, taste=concise, turns_count=1)
