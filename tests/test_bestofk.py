"""trainer/bestofk.py: imitating the ensemble's favourites raises its mean; the judge has the last word."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.records import Sampling
from tests.learners import CPU, END, PROMPTS, a_config, a_learner, a_task, shake, some_replies
from trainer import bestofk, sampler
from trainer.bestofk import kl_bound, passes_of, train_best_of_k
from trainer.config import RefreshConfig
from trainer.ensemble import rewards_of
from trainer.forward import Reply
from trainer.result import PolicyResult
from trainer.rollout import minibatches
from trainer.sampler import sample_replies
from trainer.telling import Step, nobody

SAMPLING = Sampling(0.8, 1.0, 4)


def config_of(**changes: Any) -> RefreshConfig:
    """Two prompts of four replies each, and two passes over the favourites."""
    few = {"updates": 2, "best_of": 4, "sft_lr": 2e-3}
    return a_config(**(few | changes))


def a_run(
    policy: Policy,
    config: RefreshConfig,
    *,
    start: str | None = "start",
    checkpoints: Path | None = None,
    tell: Step = nobody,
    **more: Any,
) -> PolicyResult:
    task = a_task(policy, config, sampling=SAMPLING, start=start, **more)
    return train_best_of_k(policy, task, checkpoints=checkpoints, tell=tell)


def fresh_score(policy: Policy, config: RefreshConfig) -> float:
    """The ensemble's mean reward of 512 replies by the policy as it is now, drawn with seeds of their own."""
    merged = load_model(policy.base, device=CPU, dtype=torch.float32)
    policy.write_merged("policy", merged)
    replies = sample_replies(merged, PROMPTS * 128, sampling=SAMPLING, end_of_turn=END, seed=4711, rows=128)
    return statistics.fmean(rewards_of(policy, replies, config.pessimism))


def test_the_mean_score_of_fresh_samples_rises(tiny_base: Base) -> None:
    config = config_of(updates=16, prompts_per_update=64, minibatch=8, best_of=8)
    policy = a_learner(tiny_base)
    before = fresh_score(policy, config)
    result = a_run(policy, config)
    assert (result.best_update, result.stopped) == (1, None)
    assert fresh_score(policy, config) > before + 0.08
    first, last = result.history
    assert last["score"] > first["score"] and last["judge"] > first["judge"]
    assert 0 < last["start_kl"] < 2 * kl_bound(8)
    assert first["start_kl"] == pytest.approx(0, abs=1e-5)


def test_the_bound_on_the_kl_is_that_of_the_best_of_k() -> None:
    # Of two equally likely replies with two draws the better one is kept 3 times in 4.
    exact = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert exact < kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_bound(1) == 0


def heard_favourites(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Reply], dict[str, Any]]]:
    """What fine-tuning is called with from now on; it still does its work."""
    heard: list[tuple[list[Reply], dict[str, Any]]] = []
    really = bestofk.train_sft

    def listening(policy: Policy, name: str, examples: list[Reply], *rest: Any, **more: Any) -> Any:
        heard.append((examples, more))
        return really(policy, name, examples, *rest, **more)

    monkeypatch.setattr(bestofk, "train_sft", listening)
    return heard


def all_replies(monkeypatch: pytest.MonkeyPatch) -> list[list[Reply]]:
    """What is sampled from now on, batch by batch."""
    heard: list[list[Reply]] = []
    really = sampler.sample_replies

    def listening(*rest: Any, **more: Any) -> list[Reply]:
        heard.append(really(*rest, **more))
        return heard[-1]

    monkeypatch.setattr(sampler, "sample_replies", listening)
    return heard


def test_what_is_imitated_is_the_best_of_k_to_each_prompt(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, sampled = heard_favourites(monkeypatch), all_replies(monkeypatch)
    policy, config = a_learner(tiny_base), config_of()
    a_run(policy, config)
    (favourites, _), (before, candidates, after) = taught[0], sampled
    assert (len(before), len(candidates), len(after)) == (8, 8, 8)
    for i, favourite in enumerate(favourites):
        group = candidates[4 * i : 4 * i + 4]
        assert {tuple(reply.prompt) for reply in group} == {tuple(PROMPTS[i])}
        scores = rewards_of(policy, group, config.pessimism)
        assert favourite == group[scores.index(max(scores))]
    assert len(favourites) == 2


@pytest.mark.parametrize(("given", "kept"), [(60, 24), (56, 24), (40, 20), (33, 17), (2, 1)])
def test_what_it_is_measured_on_was_not_taught(given: int, kept: int) -> None:
    taught, measured = bestofk._parted([[i] for i in range(given)], 24, 32)
    assert (len(taught), len(measured)) == (24, 32)
    assert taught[:kept] == [[i] for i in range(kept)] and measured[0] == [kept]
    assert not {i for [i] in taught} & {i for [i] in measured}


def test_a_single_prompt_is_taught_and_measured_on() -> None:
    assert bestofk._parted([[7]], 2, 3) == ([[7]] * 2, [[7]] * 3)


def test_the_budget_of_replies_is_that_of_ppo(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = all_replies(monkeypatch)
    config = config_of(updates=6, best_of=3)
    a_run(a_learner(tiny_base), config)
    assert len(sampled[1]) == config.updates * config.prompts_per_update


@pytest.mark.parametrize(
    ("best_of", "inner_epochs", "ptx"),
    [(4, 1, 0.0), (8, 2, 0.0), (16, 2, 0.0), (4, 2, 0.25), (3, 1, 0.0), (3, 1, 0.25)],
)
def test_the_optimiser_steps_are_about_as_many_as_those_of_ppo(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, best_of: int, inner_epochs: int, ptx: float
) -> None:
    steps: list[int] = []
    really = bestofk.train_sft

    def listening(*rest: Any, tell: Any, **more: Any) -> Any:
        def counting(step: int, *seen: Any) -> None:
            steps.append(step)
            tell(step, *seen)

        return really(*rest, tell=counting, **more)

    monkeypatch.setattr(bestofk, "train_sft", listening)
    config = config_of(updates=8, best_of=best_of, inner_epochs=inner_epochs, ptx=ptx)
    a_run(a_learner(tiny_base), config, ptx=some_replies())
    of_ppo = config.updates * len(minibatches(config, torch.Generator()))
    rows = config.updates * config.prompts_per_update // best_of * (2 if ptx else 1)
    a_pass = math.ceil(rows / config.minibatch)
    assert steps == list(range(1, len(steps) + 1)) and len(steps) % a_pass == 0
    assert abs(len(steps) - of_ppo) <= a_pass / 2, "and exactly as many where whole passes make them"


def test_one_pass_is_made_even_where_ppo_takes_fewer_steps() -> None:
    assert passes_of(12, config_of(updates=1)) == 1
    assert passes_of(4, config_of(updates=3, prompts_per_update=9, minibatch=8)) == 6, "its last is short"


def test_demonstrations_are_imitated_beside_the_favourites_at_their_weight(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = heard_favourites(monkeypatch)
    shown = some_replies()
    a_run(a_learner(tiny_base), config_of(ptx=0.25), ptx=shown)
    a_run(a_learner(tiny_base), config_of(), ptx=shown)
    (mixed, with_ptx), (plain, without) = taught
    assert (mixed[2:], with_ptx["weights"]) == (shown[:2], [1.0, 1.0, 0.25, 0.25])
    assert (len(plain), without["weights"]) == (2, [1.0, 1.0])
    assert with_ptx["temperature"] == SAMPLING.temperature


def test_a_policy_that_the_judge_likes_less_is_put_back(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    with torch.no_grad():  # a judge that wants the opposite of what the ensemble does
        policy.heads["judge"].weight.neg_()
    start = policy.keep("policy")
    config = config_of(updates=16, prompts_per_update=64, minibatch=8, best_of=8)
    result = a_run(policy, config)
    assert result.history[1]["score"] > result.history[0]["score"]
    assert result.history[1]["judge"] < result.history[0]["judge"]
    assert (result.best_update, result.updates) == (0, 1)
    assert all(torch.equal(tensor, start[key]) for key, tensor in policy.state("policy").items())


def test_a_policy_that_went_too_far_is_put_back_and_says_so(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    start = policy.keep("policy")
    result = a_run(policy, config_of(sft_lr=0.1, max_kl=0.5))
    assert result.best_update == 0
    assert result.stopped is not None and "from where it started, more than 0.5." in result.stopped
    assert all(torch.equal(tensor, start[key]) for key, tensor in policy.state("policy").items())


def test_nothing_but_the_policy_moves_and_nothing_is_left_on(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    others = ("reward-0", "reward-1", "judge")
    before = {name: policy.keep(name) for name in others}
    worn = set(policy.adapters)
    a_run(policy, config_of())
    assert set(policy.adapters) == worn
    for name in others:
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in policy.state(name).items())


def test_the_kl_is_held_against_the_reference_and_against_the_start(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    against_base = a_run(policy, config_of())
    policy = a_learner(tiny_base)
    policy.copy("policy", "reference")
    against_itself = a_run(policy, config_of(), reference="reference")
    assert against_base.history[0]["kl"] > 0.01
    assert against_itself.history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert against_itself.history[1]["kl"] == pytest.approx(against_itself.history[1]["start_kl"], abs=1e-5)


def test_a_start_that_is_the_reference_is_not_kept_twice(tiny_base: Base) -> None:
    histories = []
    for start in (None, "start"):
        policy = a_learner(tiny_base)
        policy.copy("policy", "reference")
        histories.append(a_run(policy, config_of(), reference="reference", start=start).history)
    assert histories[0] == histories[1]


def test_a_run_that_was_killed_does_not_sample_its_favourites_again(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_learner(tiny_base)
    whole = a_run(policy, config_of(), checkpoints=tmp_path / "bestofk")
    assert len(json.loads((tmp_path / "bestofk" / "favourites.json").read_text())["replies"]) == 2
    sampled = all_replies(monkeypatch)
    again = a_run(a_learner(tiny_base), config_of(), checkpoints=tmp_path / "bestofk")
    assert [len(batch) for batch in sampled] == [8, 8]
    assert again.history[1] == pytest.approx(whole.history[1], abs=1e-4)


@pytest.mark.parametrize("what", ["config", "start", "reward"])
def test_favourites_of_another_run_are_passed_over(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    a_run(a_learner(tiny_base), config_of(), checkpoints=tmp_path)
    file, policy = tmp_path / "favourites.json", a_learner(tiny_base)
    before, sampled = json.loads(file.read_text()), all_replies(monkeypatch)
    if what in ("start", "reward"):
        shake(policy, "policy" if what == "start" else "reward-1", 0.01)
    config = config_of(seed=1) if what == "config" else config_of()
    a_run(policy, config, checkpoints=tmp_path)
    assert [len(batch) for batch in sampled] == [8, 8, 8]
    assert json.loads(file.read_text())["fingerprint"] != before["fingerprint"]


def test_it_tells_how_far_it_is_and_leaves_what_a_person_wants_to_read(tiny_base: Base) -> None:
    heard: list[tuple[int, float]] = []

    def tell(update: int, fraction: float, metrics: dict[str, float]) -> None:
        assert {"score", "judge", "kl", "length"} <= metrics.keys()
        heard.append((update, fraction))

    result = a_run(a_learner(tiny_base), config_of(), tell=tell)
    assert heard == sorted(heard) and heard[-1] == (1, 1.0)
    assert result.history[1]["kl_bound"] == kl_bound(4)
    assert result.history[1]["favourite_score"] > result.history[0]["score"]
    assert "at most 0.64 nats" in result.notes[0]
    assert set(result.samples) == {0, 1}
    assert {"prompt", "reply", "score"} <= result.samples[1][0].keys()
