"""The gate and candidates of known worth: what the true taste likes less is refused, what it likes is not.

The judge learns from simulated rankings, as in a night; no candidate is made with it. Worse ones come from a
reward with its sign turned round, from one that asks only for ends, so that replies shrink to nothing, from
one that asks for repetition, and from adapters shaken at random; each a little, more and thoroughly.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, islice, pairwise

import pytest
import torch
from transformers import PreTrainedModel

from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.comparisons import weigh
from data.database import Database
from data.home import Home
from data.records import Prompt, Sampling
from data.snapshots import taught_turns
from tests.candidates import Court, Maker, Worth, push, replies_of
from tests.learners import CPU, shake
from tests.nights import JUDGING, PRACTICE, likes_ers, tiny_night
from trainer import reward
from trainer.examine import examine
from trainer.forward import Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SAMPLING = Sampling(max_new_tokens=24)
PROMPTS = [
    Prompt(
        ({"role": "user", "content": f"{one.messages[0]['content']} {two.messages[0]['content']}"},), None, ""
    )
    for one, two in islice(combinations(JUDGING, 2), 0, 1800, 6)
]
"""As many as a gate has: with fewer it cannot see a small gain."""


@pytest.fixture
def court(ranked: Database, home: Home, tiny_base: Base) -> Court:
    """Reward from part A, judge from part B of a hundred simulated rankings."""
    policy, config = Policy(tiny_base, device=CPU, dtype=torch.float32), tiny_night(home)
    base = load_model(tiny_base, device=CPU, dtype=torch.float32)
    turns = weigh(taught_turns(ranked))
    reference = replies_of(base, policy, PRACTICE * 4, SAMPLING, seed=5)
    for seed, (name, part) in enumerate((("reward-0", "A"), ("judge", "B"))):
        own = [turn for turn in turns if turn.part == part]
        reward.train_reward(policy, name, own, config, seed=seed, tell=lambda *_: None)
        reward.normalise(policy, name, reference)
    report = examine(policy, ["judge"], [turn for turn in turns if turn.part == "A"], seed=0)
    return Court(
        policy, torch.float32, report, config, likes_ers, SAMPLING, PROMPTS, measuring=JUDGING, draws=3
    )


def towards(worth: Callable[[Policy], Worth], steps: int, lr: float = 1e-2) -> Maker:
    """A candidate pushed towards `worth`."""

    def make(policy: Policy, model: PreTrainedModel, seed: int) -> None:
        push(policy, model, PRACTICE * 2, worth(policy), sampling=SAMPLING, steps=steps, lr=lr, seed=seed)

    return make


def at_random(size: float) -> Maker:
    """A candidate that nothing was asked of."""

    def make(policy: Policy, model: PreTrainedModel, seed: int) -> None:
        shake(policy, "policy", size, seed)
        policy.write_merged("policy", model)

    return make


def by_reward(policy: Policy) -> Worth:
    def worth(replies: Sequence[Reply]) -> list[float]:
        return reward.scores_of(policy, "reward-0", replies)

    return worth


def by_reward_upside_down(policy: Policy) -> Worth:
    return lambda replies: [-score for score in by_reward(policy)(replies)]


def by_ending(policy: Policy) -> Worth:
    return lambda replies: [-float(len(reply.reply)) for reply in replies]


def by_repeating(policy: Policy) -> Worth:
    """The same token again, unless it is the one that the taste counts."""
    (liked,) = policy.base.format.encode_text("r")
    return lambda replies: [float(sum(a == b != liked for a, b in pairwise(r.reply))) for r in replies]


def test_of_thirty_worse_candidates_the_gate_refuses_twenty_nine(court: Court) -> None:
    worths = (by_reward_upside_down, by_ending, by_repeating)
    pushed = [towards(worth, steps) for steps in (2, 6, 20) for worth in worths]
    makers = [*pushed, *(at_random(size) for size in (0.1, 0.2, 0.3))]
    refused = [not court.verdict(model).passed for model in court.made(makers, 30, lambda rate: rate <= 0.45)]
    assert len(refused) == 30
    assert sum(refused) >= 29


def test_of_ten_better_candidates_the_gate_accepts_eight(court: Court) -> None:
    # A step or two more, and they say little but r: the veto on repetition is no mistake then.
    makers = [towards(by_reward, steps, lr=3e-3) for steps in (2, 3, 4)]
    accepted = [court.verdict(model).passed for model in court.made(makers, 10, lambda rate: rate >= 0.65)]
    assert len(accepted) == 10
    assert sum(accepted) >= 8
