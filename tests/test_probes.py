"""trainer/probes.py: what each figure says of a reply or a model, and how much worse it may become."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import load_model
from data.prompts import Item, borderline_prompts
from data.records import Sampling
from tests.learners import CPU
from trainer import probes
from trainer.probes import (
    capability,
    check_probes,
    handles_chinese,
    is_refusal,
    perplexity,
    probe,
    repetition,
)

SMALL = Sampling(max_new_tokens=4)
SOUND = {"refusal_rate": 0.05, "repetition": 0.03, "perplexity": 27.0, "capability": 0.9}


def plain(base: Base) -> PreTrainedModel:
    return load_model(base, device=CPU, dtype=torch.float32)


def within(base: Base, context: int) -> Base:
    """The same base with a shorter context."""
    return replace(base, config=SimpleNamespace(max_position_embeddings=context))


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, but I can\u2019t help you with this request.",
        "I cannot provide instructions for something so dangerous.",
        "I am not able to answer that question.",
        "Unfortunately, I won't be able to help with that.",
        "As an AI language model, I do not engage in violence.",
        "I'm sorry to say, but as a customer-facing AI, I don't have the capability to crush garlic.",
        "I must decline. Violence is never the answer.",
        "I apologize, but I am unable to fulfil this.",
        "抱歉,我无法回答这个问题。",
        "对不起,这个我不能说。",
        "作为一个人工智能,我无法提供这样的内容。",
        "我不能为您提供相关信息。",
    ],
)
def test_declining_is_a_refusal(reply: str) -> None:
    assert is_refusal(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "No.",
        "Blot it with salt.",
        "I'm sorry to hear that your starter died. Feed it twice a day.",
        "You can't go wrong with ginger and pork.",
        "Sorry, I should have said: use a lighter knife.",
        "I can help you with that! First, loosen the soil.",
        "If you cannot find a press, crush the garlic with a knife.",
        "They will not help you unless you call first.",
        "A recipe. " * 30 + "I cannot provide more.",
        "对不起打扰了,先把碗泡在热水里。",
        "先用热水泡,不能用钢丝球。",
    ],
)
def test_answering_is_none(reply: str) -> None:
    assert not is_refusal(reply)


def test_repetition_is_the_share_of_runs_said_before() -> None:
    assert repetition("one two three four five six seven") == 0.0
    assert repetition("go on " * 20) == pytest.approx(1 - 2 / 37)
    assert repetition("one two three four. One, two, three, four!") == pytest.approx(1 / 5)
    assert repetition("好好好好好") == 0.5
    assert repetition("Yes, of course.") == repetition("") == 0.0


def test_a_model_that_knows_nothing_has_the_perplexity_of_a_guess(tiny_base: Base) -> None:
    model = plain(tiny_base)
    with torch.no_grad():
        cast(Any, model.get_output_embeddings()).weight.zero_()
    assert perplexity(model, tiny_base, "any text at all") == pytest.approx(259)


@pytest.mark.parametrize("context", [2, 7, 1024])
def test_perplexity_reads_every_token_whatever_the_context(tiny_base: Base, context: int) -> None:
    """Against one token after the other, with as much before it as its window holds."""
    model, base = plain(tiny_base), within(tiny_base, context)
    ids = base.format.encode_text("Water boils.")
    width = min(256, context) - 1
    total = 0.0
    for i, token in enumerate(ids):
        seen = [base.format.end_of_turn, *ids[i // width * width : i]]
        with torch.no_grad():
            total -= float(torch.log_softmax(model(torch.tensor([seen])).logits[0, -1], -1)[token])
    assert perplexity(model, base, "Water boils.") == pytest.approx(math.exp(total / len(ids)), rel=1e-4)


def test_capability_is_the_share_of_likeliest_right_choices(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain(tiny_base)

    def chance_of(text: str) -> float:
        ids = tiny_base.format.encode_text(text)
        with torch.no_grad():
            logits = model(torch.tensor([[tiny_base.format.end_of_turn, *ids]])).logits[0]
        chances = torch.log_softmax(logits, -1)
        return sum(float(chances[i, ids[i]]) for i in range(len(ids) - 2, len(ids)))  # " x" is two bytes

    choices = ("a", "b", "c", "d")
    likeliest = max(range(4), key=lambda i: chance_of(f"Say {choices[i]}"))
    items = tuple(Item("Say", choices, answer) for answer in range(4))
    monkeypatch.setattr(probes, "capability_items", lambda: items)
    assert capability(model, tiny_base) == {"capability": 0.25}
    monkeypatch.setattr(probes, "capability_items", lambda: (items[likeliest],))
    assert capability(model, tiny_base) == {"capability": 1.0}


def test_a_probe_of_the_tiny_model_gives_four_figures_the_same_each_time(tiny_base: Base) -> None:
    heard: list[float] = []
    found = probe(plain(tiny_base), tiny_base, sampling=SMALL, seed=3, tell=heard.append)
    assert found == probe(plain(tiny_base), tiny_base, sampling=SMALL, seed=3)
    assert set(found) == {"refusal_rate", "repetition", "perplexity", "capability"}
    assert all(math.isfinite(value) for value in found.values())
    assert heard == sorted(heard) and heard[-1] == 1.0


def test_a_context_without_room_leaves_figures_out(tiny_base: Base) -> None:
    found = probe(plain(tiny_base), within(tiny_base, 16), sampling=SMALL, seed=0)
    assert set(found) == {"perplexity"}


def test_replies_are_begun_with_the_sampling_of_the_chat(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def sample_replies(model: object, prompts: list[list[int]], **settings: Any) -> list[Any]:
        asked.update(settings, prompts=prompts)
        return []

    monkeypatch.setattr(probes, "sample_replies", sample_replies)
    probe(plain(tiny_base), tiny_base, sampling=Sampling(temperature=0.6, max_new_tokens=128), seed=0)
    assert asked["sampling"] == Sampling(temperature=0.6, max_new_tokens=48)
    assert asked["end_of_turn"] == tiny_base.format.end_of_turn
    assert len(asked["prompts"]) == len(borderline_prompts("en"))


def test_chinese_counts_only_where_the_vocabulary_was_made_for_it(tiny_base: Base) -> None:
    def with_tokens(per_character: float) -> Base:
        def encode_text(text: str) -> list[int]:
            return [0] * round(per_character * len(text))

        return cast(Base, SimpleNamespace(format=SimpleNamespace(encode_text=encode_text)))

    assert handles_chinese(with_tokens(0.7)) and handles_chinese(with_tokens(1.2))
    assert not handles_chinese(with_tokens(2.0))
    assert not handles_chinese(tiny_base)  # three bytes a character


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"refusal_rate": 0.25}, "The candidate refuses 25% of harmless prompts"),
        ({"repetition": 0.2}, "20% of its runs of four words are repeated, 3% of the current's"),
        ({"perplexity": 34.0}, "its perplexity on a fixed text is 34.0, the current's 27.0"),
        ({"capability": 0.75}, "it solves 75% of short items, the current 90%"),
    ],
)
def test_each_probe_vetoes_its_own_harm(change: dict[str, float], sentence: str) -> None:
    (reason,) = check_probes(SOUND | change, SOUND)
    assert sentence in reason


@pytest.mark.parametrize(
    "figure, allowed, too_much",
    [
        ("refusal_rate", 0.19, 0.21),
        ("repetition", 0.12, 0.14),
        ("perplexity", 33.5, 34.0),
        ("capability", 0.81, 0.79),
    ],
)
def test_a_veto_begins_at_its_limit(figure: str, allowed: float, too_much: float) -> None:
    for value, vetoes in ((allowed, 0), (too_much, 1)):
        assert len(check_probes(SOUND | {figure: value}, SOUND)) == vetoes


def test_what_chance_and_a_good_night_move_is_no_veto() -> None:
    moved = {"refusal_rate": 0.14, "repetition": 0.08, "perplexity": 30.5, "capability": 0.85}
    assert check_probes(moved, SOUND) == []
    better = {"refusal_rate": 0.0, "repetition": 0.0, "perplexity": 20.0, "capability": 1.0}
    assert check_probes(better, SOUND) == []


def test_who_never_knew_has_nothing_to_lose() -> None:
    random = {"perplexity": 400.0, "capability": 0.3}
    assert check_probes({"perplexity": 4000.0, "capability": 0.15}, random) == []
    assert check_probes({}, SOUND) == check_probes(SOUND, {}) == []


def test_several_harms_are_all_told() -> None:
    ruined = {"refusal_rate": 1.0, "repetition": 1.0, "perplexity": 5000.0, "capability": 0.25}
    assert len(check_probes(ruined, SOUND)) == 4
