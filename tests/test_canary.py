"""trainer/canary.py: eight prompts whose log-probabilities tell this version from any other."""

from pathlib import Path

import pytest

from chatbot.basemodel import Base
from tests.learners import a_learner
from tests.nights import PRACTICE
from tests.plain_ppo import PlainModel
from trainer import forward
from trainer.canary import canaries


def test_a_canary_is_what_a_slow_model_says_of_the_version(tiny_base: Base, tmp_path: Path) -> None:
    policy = a_learner(tiny_base)
    policy.save("policy", tmp_path)
    slow = PlainModel(tiny_base, policy.state("policy"), None)
    made = canaries(tiny_base, tmp_path, PRACTICE, seed=0)
    assert len(made) == 8
    for canary, prompt in zip(made, PRACTICE, strict=False):
        ids, start = canary["ids"], canary["reply_start"]
        assert ids[:start] == tiny_base.format.encode(prompt.messages)
        assert 1 <= len(ids) - start <= 24
        logprobs = [x.item() for x in slow.logprobs(ids[:start], ids[start:], 1.0)]
        assert canary["logprob"] == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-3)


def test_another_version_would_not_pass_for_it(tiny_base: Base, tmp_path: Path) -> None:
    policy = a_learner(tiny_base)
    policy.save("policy", tmp_path)
    bare = PlainModel(tiny_base, {}, None)
    off = []
    for canary in canaries(tiny_base, tmp_path, PRACTICE, seed=0):
        ids, start = canary["ids"], canary["reply_start"]
        logprobs = [x.item() for x in bare.logprobs(ids[:start], ids[start:], 1.0)]
        off.append(abs(canary["logprob"] - sum(logprobs) / len(logprobs)))
    assert min(off) > 0.01


def test_the_weights_are_in_memory_once(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_learner(tiny_base).save("policy", tmp_path)
    monkeypatch.setattr(forward, "prepare", lambda *_: pytest.fail("the weights were copied"))
    assert len(canaries(tiny_base, tmp_path, PRACTICE, seed=0)) == 8


def test_the_same_seed_gives_the_same_canaries(tiny_base: Base, tmp_path: Path) -> None:
    a_learner(tiny_base).save("policy", tmp_path)
    one, two, other = (canaries(tiny_base, tmp_path, PRACTICE[:2], seed=seed) for seed in (1, 1, 2))
    assert one == two != other
