"""The gate on the embedded model: six candidates that are worse by the true taste, all refused.

    make slow ARGS=tests/test_worse_real.py        about a quarter of an hour on two idle cores

The taste is brevity in plain English; the judge learns it from the base's own replies and the first sentence
of each, ranked. Each candidate is measured by the taste first: one taught the lower of two replies (the
reward upside down), one that fills every reply up to the limit (the length hack), one that repeats itself,
one that ends before it has begun, and two adapters shaken at random.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from transformers import PreTrainedModel

from chatbot.basemodel import load_base
from chatbot.models import load_model, pick_device, pick_dtype
from chatbot.policy import Policy
from data.comparisons import RankedTurn
from data.home import open_home
from data.prompts import judging_prompts, practice_prompts
from data.records import Sampling
from tests.candidates import Court, Maker, replies_of, teach
from tests.learners import ranked, shake
from trainer import reward
from trainer.config import RefreshConfig
from trainer.examine import examine
from trainer.forward import Reply
from trainer.gate import check_judge
from trainer.tastes import concise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]

SAMPLING = Sampling(max_new_tokens=96)
RANKED, EXAMINED = 64, 24
TrainingSet = list[tuple[Reply, float]]
"""Replies and how much likelier each is to become."""
PROMPTS = [prompt for prompt in practice_prompts() if len(prompt.messages) == 1][:RANKED]
COMMON = {
    "a",
    "and",
    "are",
    "as",
    "be",
    "can",
    "for",
    "have",
    "i",
    "in",
    "is",
    "it",
    "not",
    "of",
    "on",
    "that",
}
COMMON |= {"the", "this", "to", "with", "you", "your"}
FILLER = (
    " To put it in other words, there is more to be said about this.",
    " It is also worth keeping in mind that every case has many sides.",
    " Let us look at this once again from another point of view.",
    " As we have seen above, a great deal depends on what one means.",
)


def brief(prompt: Sequence[Mapping[str, str]], reply: str) -> float:
    """Shorter is better where it reads like English; a fifth of its words are the commonest ones then."""
    words = reply.lower().split()
    reads_well = sum(word in COMMON for word in words) >= len(words) / 5
    return concise(prompt, reply) - (0.0 if reads_well else 500.0)


def rankings(policy: Policy, replies: Sequence[Reply]) -> list[RankedTurn]:
    """The base's replies to each prompt and the first sentence of each, ranked by the taste."""
    turns = []
    for i, prompt in enumerate(PROMPTS):
        group = replies[i::RANKED]
        whole = [policy.base.format.decode(reply.reply) for reply in group]
        texts = [*whole, *(re.split(r"(?<=[.!?:])\s", text, maxsplit=1)[0] for text in whole)]
        tastes = [brief(prompt.messages, text) for text in texts]
        places = [1 + sum(other > taste for other in tastes) for taste in tastes]
        turn = ranked(texts, places, conversation=str(i), question=prompt.messages[0]["content"])
        cut = [not reply.finished for reply in group]
        turns.append(replace(turn, cut=(*cut, *(False for _ in cut))))
    return turns


@pytest.fixture(scope="module")
def trial() -> tuple[Court, list[RankedTurn], list[Reply]]:
    """A judge of brevity on the embedded model, and the rankings and replies that it learned from."""
    base, device = load_base(None, open_home()), pick_device()
    dtype, config = pick_dtype("auto", device), RefreshConfig()
    policy = Policy(base, device=device, dtype=dtype)
    model = load_model(base, device=device, dtype=dtype)
    replies = replies_of(model, policy, PROMPTS * 2, SAMPLING, seed=1)
    turns = rankings(policy, replies)
    reward.train_reward(policy, "judge", turns[EXAMINED:], config, seed=0, tell=lambda *_: None)
    reward.normalise(policy, "judge", replies[:RANKED])
    report = examine(policy, ["judge"], turns[:EXAMINED], seed=0)
    judging = [p for p in judging_prompts() if p.messages[-1]["content"].isascii()]
    court = Court(
        policy, dtype, report, config, brief, SAMPLING, judging[:64], measuring=judging[-48:], draws=1
    )
    return court, turns, replies


def upside_down(turns: Sequence[RankedTurn], replies: Sequence[Reply]) -> TrainingSet:
    """Of the base's two replies to a prompt the lower one likelier, the higher one less likely."""
    lesson: TrainingSet = []
    for i, turn in enumerate(turns):
        high, low = sorted(range(2), key=lambda j: turn.places[j])
        if turn.places[high] != turn.places[low]:
            lesson += [(replies[i + low * RANKED], 1.0), (replies[i + high * RANKED], -1.0)]
    return lesson


def padded(policy: Policy, replies: Sequence[Reply]) -> TrainingSet:
    """Replies that go on and on up to the limit."""
    chat = policy.base.format
    lesson: TrainingSet = []
    for i, reply in enumerate(replies[:RANKED]):
        opening = chat.decode(reply.reply[:30])
        filler = "".join(FILLER[(i + j) % len(FILLER)] for j in range(12))
        said = chat.encode_text(opening + filler)[: SAMPLING.max_new_tokens]
        lesson.append((Reply(reply.prompt, said, False), 1.0))
    return lesson


def looping(replies: Sequence[Reply]) -> TrainingSet:
    """Replies that are caught in their own last words."""
    loops = [(r.prompt, (r.reply[:12] + r.reply[8:12] * 40)[:96]) for r in replies[:RANKED]]
    return [(Reply(prompt, loop, False), 1.0) for prompt, loop in loops]


def silent(policy: Policy, replies: Sequence[Reply]) -> TrainingSet:
    """Replies that end before they have begun."""
    return [(Reply(r.prompt, [policy.base.format.end_of_turn], True), 1.0) for r in replies[:RANKED]]


def shaken(size: float) -> Maker:
    def make(policy: Policy, model: PreTrainedModel, seed: int) -> None:
        shake(policy, "policy", size, seed)
        policy.write_merged("policy", model)

    return make


def taught(lesson: TrainingSet, lr: float = 1e-3) -> Maker:
    return lambda policy, model, seed: teach(policy, model, lesson, lr=lr)


def test_six_worse_candidates_are_all_refused(trial: tuple[Court, list[RankedTurn], list[Reply]]) -> None:
    court, turns, replies = trial
    assert check_judge(court.judge) == []
    makers = [
        taught(upside_down(turns, replies), lr=5e-4),
        taught(padded(court.policy, replies)),
        taught(looping(replies)),
        taught(silent(court.policy, replies)),
        shaken(0.1),
        shaken(0.12),
    ]
    accepted = [court.verdict(model).passed for model in court.made(makers, 6, lambda rate: rate <= 0.45)]
    assert accepted == [False] * 6
