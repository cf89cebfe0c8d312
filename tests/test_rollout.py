"""trainer/rollout.py: every number of a rollout against a slow one, whoever measured it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from chatbot.basemodel import Base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.records import Sampling
from tests.learners import CPU, a_learner, some_replies
from tests.plain_ppo import PlainModel
from trainer.config import RefreshConfig
from trainer.forward import TOKENS_PER_PASS, Reply
from trainer.members import pessimistic
from trainer.reward import scores_of
from trainer.rollout import (
    Roles,
    Rollout,
    Task,
    distinct_2,
    measure_replies,
    minibatches,
    roll_out,
    rollout_metrics,
    sampler_gap,
    some_samples,
)
from trainer.sampler import MergedSampler

REPLIES = some_replies()
MEMBERS = ("reward-0", "reward-1")


def measured(policy: Policy, *, temperature: float = 0.8, **roles: Any) -> Rollout:
    if "value" not in policy.adapters:
        policy.copy("reward-0", "value")
    return measure_replies(policy, REPLIES, temperature=temperature, roles=Roles(MEMBERS, **roles))


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.3])
def test_temperature_divides_policy_reference_and_start_alike(tiny_base: Base, temperature: float) -> None:
    policy = a_learner(tiny_base)
    rollout = measured(policy, temperature=temperature, start="judge")
    roles = {"policy": rollout.logprob, "judge": rollout.start_logprob, "": rollout.ref_logprob}
    for name, logprobs in roles.items():
        slow = PlainModel(tiny_base, policy.state(name) if name else {}, None)
        for row, r in enumerate(REPLIES):
            expected = [x.item() for x in slow.logprobs(r.prompt, r.reply, temperature)]
            assert logprobs[row, : len(r.reply)].tolist() == pytest.approx(expected, abs=1e-4)
            assert not logprobs[row, len(r.reply) :].any()


def test_values_are_read_before_a_token_and_scores_over_the_whole_reply(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    rollout = measured(policy)
    slow = PlainModel(tiny_base, policy.state("reward-0"), policy.heads["reward-0"].state_dict())
    for row, r in enumerate(REPLIES):
        values = [x.item() for x in slow.values(r.prompt, r.reply)]
        assert rollout.value[row, : len(r.reply)].tolist() == pytest.approx(values, abs=1e-4)
        assert rollout.scores[0, row].item() == pytest.approx(slow.score(r.prompt, r.reply).item(), abs=1e-4)


def test_the_score_inside_ppo_is_the_score_of_the_reward_model(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    rollout = measured(policy)
    for name, scores in (
        ("reward-0", rollout.scores[0]),
        ("reward-1", rollout.scores[1]),
        ("judge", rollout.judge_score),
    ):
        outside = scores_of(policy, name, REPLIES)
        assert scores.tolist() == pytest.approx(outside, abs=1e-5)


def test_the_gap_is_what_the_sampling_copy_and_the_training_copy_differ_by(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    untempered = measured(policy, temperature=1.0).logprob
    own = [row[: len(r.reply)].tolist() for row, r in zip(untempered, REPLIES, strict=True)]
    for shift in (0.0, 0.25):
        sampled = [replace(r, logprobs=[x + shift for x in xs]) for r, xs in zip(REPLIES, own, strict=True)]
        gap = sampler_gap(replace(measured(policy), replies=sampled))
        assert gap == pytest.approx(shift, abs=1e-5)


def test_a_reference_adapter_anchors_the_kl_in_the_place_of_the_base(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("policy", "reference")
    anchored, free = measured(policy, reference="reference"), measured(policy)
    torch.testing.assert_close(anchored.ref_logprob, anchored.logprob)
    assert metrics_of(anchored)["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(metrics_of(free)["kl"]) > 0.1


def test_the_reference_is_the_bare_base_whatever_is_trained(tiny_base: Base) -> None:
    one, other = measured(a_learner(tiny_base, size=0.0)), measured(a_learner(tiny_base, size=0.2))
    torch.testing.assert_close(one.ref_logprob, other.ref_logprob)
    torch.testing.assert_close(one.ref_logprob, one.logprob, atol=1e-5, rtol=0)
    assert (other.logprob - other.ref_logprob).abs().max() > 0.1


def test_without_a_start_of_its_own_the_night_starts_at_the_reference(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    assert torch.equal(rollout.start_logprob, rollout.ref_logprob)


def test_micro_batches_change_no_number(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = a_learner(tiny_base)
    whole = measured(policy)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 16)
    pieces = measured(policy)
    for name in ("logprob", "ref_logprob", "value", "entropy", "scores", "judge_score"):
        torch.testing.assert_close(getattr(whole, name), getattr(pieces, name), atol=1e-4, rtol=0)
    assert torch.equal(whole.mask, pieces.mask)
    assert whole.mask.sum(1).tolist() == [len(r.reply) for r in REPLIES]


def test_entropy_is_that_of_the_distribution(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base, size=0.0), temperature=1e4)
    assert rollout.entropy[rollout.mask].mean().item() == pytest.approx(math.log(259), abs=1e-3)
    assert not rollout.entropy[~rollout.mask].any()


def test_each_update_rolls_out_on_the_next_prompts_and_begins_again_at_the_end(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward-0", "value")
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32)
    config = RefreshConfig(prompts_per_update=2, minibatch=2)
    prompts = [[1, 80 + i] for i in range(3)]
    task = Task(MergedSampler(merged), prompts, config, Sampling(max_new_tokens=3), Roles(MEMBERS))
    batches = [roll_out(policy, task, update)[0].replies for update in range(3)]
    seen = [[r.prompt[1] - 80 for r in replies] for replies in batches]
    assert seen == [[0, 1], [2, 0], [1, 2]]


def test_each_update_draws_with_seeds_of_its_own_and_the_same_ones_each_time(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward-0", "value")
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32)

    def said(update: int, seed: int = 0) -> list[list[int]]:
        config = RefreshConfig(prompts_per_update=4, minibatch=2, seed=seed)
        task = Task(MergedSampler(merged), [[1, 80]], config, Sampling(max_new_tokens=6), Roles(MEMBERS))
        return [reply.reply for reply in roll_out(policy, task, update)[0].replies]

    assert said(0) == said(0)
    assert len({str(replies) for replies in (said(0), said(1), said(2), said(0, seed=1))}) == 4


def test_rollouts_come_from_the_policy_as_it_is_now(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward-0", "value")
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32)
    config = RefreshConfig(prompts_per_update=8, minibatch=2)
    roll_out(
        policy, Task(MergedSampler(merged), [[1, 80]], config, Sampling(max_new_tokens=3), Roles(MEMBERS)), 0
    )
    weights = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    policy.write_merged("policy", merged)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in merged.state_dict().items())
    plain = load_model(tiny_base, device=CPU, dtype=torch.float32).state_dict()
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in weights.items())


def metrics_of(rollout: Rollout) -> dict[str, float]:
    return rollout_metrics(rollout, *pessimistic(rollout.scores, 0.5))


def test_metrics_count_real_tokens_only(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    wide = torch.nn.functional.pad
    padded = replace(
        rollout,
        mask=wide(rollout.mask, (0, 9)),
        **{n: wide(getattr(rollout, n), (0, 9), value=5.0) for n in ("logprob", "ref_logprob", "entropy")},
        start_logprob=wide(rollout.start_logprob, (0, 9), value=-5.0),
    )
    assert metrics_of(padded) == pytest.approx(metrics_of(rollout))


def test_metrics_say_what_the_replies_were_like(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    metrics = metrics_of(rollout)
    assert metrics["length"] == pytest.approx(sum(len(r.reply) for r in REPLIES) / 5)
    assert (metrics["eos_rate"], metrics["empty_rate"]) == pytest.approx((3 / 5, 1 / 5))
    kl = [
        (rollout.logprob - rollout.ref_logprob)[i, : len(r.reply)].sum().item() for i, r in enumerate(REPLIES)
    ]
    assert metrics["kl"] == pytest.approx(sum(kl) / 5, abs=1e-5)
    assert metrics["kl_per_token"] == pytest.approx(sum(kl) / sum(len(r.reply) for r in REPLIES), abs=1e-5)


def test_a_reply_of_which_a_person_sees_nothing_is_empty(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward-0", "value")
    texts = ["\n", " ", "", "Yes."]
    said = [Reply([1, 80], tiny_base.format.encode_reply(text), True) for text in texts]
    rollout = measure_replies(policy, said, temperature=1.0, roles=Roles(MEMBERS))
    assert metrics_of(rollout)["empty_rate"] == 3 / 4


def test_one_reply_has_finite_metrics(tiny_base: Base, recwarn: pytest.WarningsRecorder) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward-0", "value")
    metrics = metrics_of(measure_replies(policy, REPLIES[:1], temperature=1.0, roles=Roles(MEMBERS)))
    assert all(abs(value) < 1e6 for value in metrics.values()), metrics


def test_distinct_2_falls_where_replies_repeat_themselves() -> None:
    assert distinct_2([[1, 2, 3], [4, 5]]) == 1.0
    assert distinct_2([[1, 1, 1, 1, 1]]) == 1 / 4
    assert distinct_2([[1, 2], [1, 2]]) == 1 / 2
    assert distinct_2([[1], []]) == 1.0


def test_the_score_of_the_metrics_is_the_pessimistic_one(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    metrics, both = metrics_of(rollout), rollout.scores
    spread = (both[0] - both[1]).abs() / 2  # the population's standard deviation of two
    assert metrics["disagreement"] == pytest.approx(float(spread.mean()), abs=1e-5)
    assert metrics["score"] == pytest.approx(float((both.mean(0) - 0.5 * spread).mean()), abs=1e-5)


def test_now_and_then_replies_are_kept_to_be_read(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    found = some_samples(rollout, rollout.scores[0], update=5)[5]
    assert [(s["prompt"], s["reply"]) for s in found] == [(r.prompt, r.reply) for r in REPLIES]
    assert [s["score"] for s in found] == pytest.approx(rollout.scores[0].tolist())
    assert some_samples(rollout, rollout.scores[0], update=6) == {}


def test_every_reply_is_used_once_an_epoch_in_a_fresh_order() -> None:
    config = RefreshConfig(prompts_per_update=10, minibatch=4, inner_epochs=2)
    rows = minibatches(config, torch.Generator().manual_seed(3))
    assert [len(batch) for batch in rows] == [4, 4, 2] * 2
    first, second = ([i for batch in part for i in batch] for part in (rows[:3], rows[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
