"""trainer/practice.py: what a night practises on and is judged on."""

from pathlib import Path

import pytest

from chatbot.basemodel import Base
from data.comparisons import take_snapshot
from data.database import Database
from data.errors import NotFound, Refused
from data.home import Home
from data.prompts import judging_prompts, practice_prompts
from tests.nights import JUDGING, PRACTICE, short_prompts, tiny_night, write_prompts
from tests.stories import a_turn, rank, somebody
from trainer.config import RefreshConfig
from trainer.practice import judging, practice, ptx_examples, reference_prompts


def texts(base: Base, prompts: list[list[int]]) -> list[str]:
    return [base.format.decode(ids) for ids in prompts]


def test_practice_prompts_are_as_many_as_needed_and_none_twice(db: Database, tiny_base: Base) -> None:
    config = RefreshConfig(updates=3, prompts_per_update=8)

    prompts = practice(db, tiny_base, config, [])

    assert len(prompts) == 4 * 8
    assert len({tuple(p) for p in prompts}) == 4 * 8
    assert max(len(p) for p in prompts) <= 384


def test_people_s_own_turns_are_practised_on_unless_they_were_ranked(
    db: Database, home: Home, tiny_base: Base
) -> None:
    ada = somebody(db)
    a_turn(db, ada, question="Why is the sky blue?")
    rank(db, ada, a_turn(db, ada, question="Why is grass green?"), (1, 2, 3))

    prompts = practice(db, tiny_base, tiny_night(home), take_snapshot(db).turns)

    said = " ".join(texts(tiny_base, prompts))
    assert "Why is the sky blue?" in said
    assert "Why is grass green?" not in said


def test_the_same_seed_practises_in_the_same_order(db: Database, home: Home, tiny_base: Base) -> None:
    assert practice(db, tiny_base, tiny_night(home, seed=5), []) == practice(
        db, tiny_base, tiny_night(home, seed=5), []
    )
    assert practice(db, tiny_base, tiny_night(home, seed=5), []) != practice(
        db, tiny_base, tiny_night(home, seed=6), []
    )


def test_an_operator_s_own_files_replace_ours(db: Database, home: Home, tiny_base: Base) -> None:
    config = tiny_night(home)

    assert len(practice(db, tiny_base, config, [])) == len(PRACTICE)
    asked = sorted(p.messages[-1]["content"] for p in judging(tiny_base, config))
    assert asked == sorted(p.messages[-1]["content"] for p in JUDGING)
    assert len(reference_prompts(tiny_base, config)) == len(PRACTICE)


def test_a_file_that_is_missing_or_too_long_is_a_sentence(
    db: Database, home: Home, tiny_base: Base, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        practice(db, tiny_base, tiny_night(home, practice="nowhere.jsonl"), [])
    long = write_prompts(tmp_path / "long.jsonl", short_prompts("x" * 500))
    with pytest.raises(Refused, match="No prompt to practise on has fewer than 384 tokens"):
        practice(db, tiny_base, tiny_night(home, practice=long), [])


def test_what_we_ship_for_judging_is_not_what_we_ship_for_practice() -> None:
    practised = {p.messages[-1]["content"].casefold() for p in practice_prompts()}
    judged = {p.messages[-1]["content"].casefold() for p in judging_prompts()}

    assert len(practised) >= 600
    assert len(judged) >= 300
    assert not practised & judged


def test_ptx_learns_from_a_text_file_or_from_demonstrations(
    db: Database, tiny_base: Base, tmp_path: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("Once upon a time. " * 40)
    assert ptx_examples(db, tiny_base, RefreshConfig(ptx_data=str(text))) == []
    examples = ptx_examples(db, tiny_base, RefreshConfig(ptx=1.0, ptx_data=str(text)))
    ids = [i for example in examples for i in example.ids]
    assert tiny_base.format.decode(ids) == text.read_text() and len(examples) == 3
    with pytest.raises(Refused, match="no demonstrations for PPO-ptx"):
        ptx_examples(db, tiny_base, RefreshConfig(ptx=1.0))
    with pytest.raises(Refused, match="nowhere"):
        ptx_examples(db, tiny_base, RefreshConfig(ptx=1.0, ptx_data="nowhere.txt"))
