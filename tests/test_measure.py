"""Measuring: versions answer the same prompts and are held against the first one named."""

import json
import random
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.engine import Engine
from chatbot.models import merged_model
from data.database import Database
from data.errors import NotFound, Refused
from data.home import Home
from data.records import Prompt
from tests.adapter_files import make_version
from trainer.forward import logprobs_of
from trainer.measure import as_table, compare, measure
from trainer.tastes import Taste, concise

PROMPTS = [Prompt(({"role": "user", "content": text},), None, "test") for text in ("Hi", "Why?", "Tell me.")]


def few_e(prompt: object, reply: str) -> float:
    return -float(reply.count("e"))


def test_wins_ties_and_losses_are_counted_over_all_pairs_of_a_prompt() -> None:
    duel = compare([[2.0, 1.0], [5.0]], [[1.0, 1.0], [5.0]])
    assert (duel.wins, duel.losses, duel.ties) == ([2, 0], [0, 0], [2, 1])
    assert duel.win_rate == pytest.approx(3.5 / 5) and duel.tie_share == pytest.approx(3 / 5)
    assert duel.decisive_win_rate == 1.0


def test_without_a_decisive_pair_there_is_no_decisive_win_rate() -> None:
    duel = compare([[1.0], [2.0]], [[1.0], [2.0]])
    assert duel.win_rate == 0.5 and duel.decisive_win_rate is None and duel.interval() is None


@pytest.mark.parametrize(("wins", "low"), [(1, 0.21), (8, 0.68), (50, 0.93)])
def test_an_interval_has_a_width_even_where_every_decided_prompt_was_won(wins: int, low: float) -> None:
    duel = compare([[1.0]] * wins + [[0.0]] * 100, [[0.0]] * (wins + 100))
    assert duel.interval() == pytest.approx((low, 1.0), abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(1)
    covered = 0
    for _ in range(60):
        mine = [[float(draw.random() < 0.7)] for _ in range(100)]
        low, high = compare(mine, [[0.5]] * 100).interval() or (0.0, 0.0)
        covered += low <= 0.7 <= high
    assert covered >= 52


def test_versions_are_measured_against_the_first(db: Database, home: Home, tiny_base: Base) -> None:
    make_version(db, home, tiny_base)
    names = ["base", "v000001"]
    report = measure(
        tiny_base, home, db, taste=few_e, names=names, prompts=PROMPTS, samples=2, precision="float32"
    )
    base, version = report["versions"]["base"], report["versions"]["v000001"]
    keys = "taste_mean best_of_taste taste_gain win_rate decisive_win_rate decisive_win_rate_interval"
    keys += " ties tokens_mean kl"
    assert list(base) == list(version) == keys.split()
    assert base["best_of_taste"] >= base["taste_mean"]
    assert base["taste_gain"] == base["kl"] == 0.0 and base["win_rate"] is None
    assert 0 <= version["win_rate"] <= 1 and version["kl"] > 0.05
    assert version["tokens_mean"] <= 128 == report["sampling"]["max_new_tokens"]
    json.dumps(report, allow_nan=False)
    assert "v000001" in as_table(report)[2] and "temperature 0.8" in as_table(report)[-1]


def test_the_engine_s_weights_are_gone_when_the_kl_is_read(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Engine]] = []

    def engine(*given: Any, **how: Any) -> Engine:
        made = Engine(*given, **how)
        held.append(weakref.ref(made))
        return made

    monkeypatch.setattr("trainer.measure.Engine", engine)
    monkeypatch.setattr("trainer.measure._kls", lambda *_: {"base": float(held[0]() is not None)})
    report = measure(tiny_base, home, db, taste=few_e, names=["base"], prompts=PROMPTS, precision="float32")
    assert report["versions"]["base"]["kl"] == 0.0, "it is still there"


def test_the_same_seed_measures_the_same(db: Database, home: Home, tiny_base: Base) -> None:
    def once(seed: int) -> object:
        return measure(
            tiny_base,
            home,
            db,
            taste=concise,
            names=["base"],
            prompts=PROMPTS,
            seed=seed,
            precision="float32",
        )

    assert once(3) == once(3) != once(4)


def test_kl_is_that_of_the_versions_own_replies_at_the_sampling_temperature(
    db: Database, home: Home, tiny_base: Base
) -> None:
    # The exact KL of the first reply token, against the estimate from many one-token replies.
    version = make_version(db, home, tiny_base)
    cpu = torch.device("cpu")
    models = [
        merged_model(tiny_base, path, device=cpu, dtype=torch.float32)
        for path in (home.adapters / version.path, None)
    ]
    prompt = tiny_base.format.encode(PROMPTS[0].messages)
    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0, -1].float() / 0.8 for model in models]
    own, ours = (torch.log_softmax(row, -1) for row in logits)
    exact = float((own.exp() * (own - ours)).sum())
    tokens = torch.multinomial(own.exp(), 150, replacement=True, generator=torch.Generator().manual_seed(0))
    replies = [[int(token)] for token in tokens]
    sums = [[float(p.sum()) for p in logprobs_of(m, [prompt] * 150, replies, 0.8)] for m in models]
    estimate = sum(a - b for a, b in zip(*sums, strict=True)) / 150
    assert estimate == pytest.approx(exact, rel=0.3, abs=0.05) and exact > 0


def test_both_sides_of_a_kl_are_read_in_the_format_there_is_room_for(
    db: Database, home: Home, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(db, home, tiny_base)

    def kl() -> float:
        names = ["base", "v000001"]
        report = measure(tiny_base, home, db, taste=few_e, names=names, prompts=PROMPTS, precision="float32")
        return float(report["versions"]["v000001"]["kl"])

    def read(base: Base, adapter: Path | None, **how: Any) -> PreTrainedModel:
        loaded.append((adapter is None, how["dtype"]))
        return merged_model(base, adapter, **how)

    exact, loaded = kl(), list[tuple[bool, torch.dtype]]()
    monkeypatch.setattr(
        "trainer.measure.exact_format", lambda *_, **__: (torch.device("cpu"), torch.bfloat16)
    )
    monkeypatch.setattr("trainer.measure.merged_model", read)
    assert kl() == pytest.approx(exact, rel=0.2)
    assert loaded == [(False, torch.bfloat16), (True, torch.bfloat16)]


def test_nothing_to_measure_and_unknown_versions_are_sentences(
    db: Database, home: Home, tiny_base: Base
) -> None:
    def ask(names: list[str], prompts: list[Prompt], taste: Taste = concise) -> None:
        measure(tiny_base, home, db, taste=taste, names=names, prompts=prompts)

    with pytest.raises(NotFound, match="No version 'v000099' - run"):
        ask(["base", "v000099"], PROMPTS)
    for names, prompts in ((["base"], []), ([], PROMPTS)):
        with pytest.raises(Refused, match="nothing to measure"):
            ask(names, prompts)
