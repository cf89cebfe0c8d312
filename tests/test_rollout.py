"""trainer/rollout.py: every number of a rollout against a slow one, and that padding adds nothing to any."""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import pytest
import torch

from chatbot.basemodel import Base, load_base
from chatbot.models import load_model
from chatbot.policy import Policy
from data.home import Home
from data.records import Sampling
from tests.learners import CPU, END, a_learner, some_replies
from tests.plain_ppo import PlainModel
from tests.tiny import make_tiny_model
from trainer.config import RefreshConfig
from trainer.reward import score_sequences
from trainer.rollout import (
    Reply,
    distinct_2,
    forward_replies,
    hash_seed,
    logprobs_of,
    measure_replies,
    micro_batches,
    reply_entropy,
    reply_logprobs,
    roll_out,
    rollout_metrics,
    sample_replies,
)

REPLIES = some_replies()


@pytest.mark.parametrize("left_pad", [0, 17])
def test_padding_changes_neither_logprob_nor_value_nor_score(tiny_base: Base, left_pad: int) -> None:
    policy = a_learner(tiny_base)
    with torch.no_grad():
        for name in ("policy", "reward"):
            with policy.wear(name):
                ours = forward_replies(policy, REPLIES)
                padded = forward_replies(policy, REPLIES, left_pad)
            assert torch.equal(ours.mask, padded.mask)
            assert torch.equal(ours.tokens[ours.mask], padded.tokens[padded.mask])
            for read in (reply_logprobs, reply_entropy):
                a, b = (read(policy.logits, forward, 0.8) for forward in (ours, padded))
                torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
            head = policy.heads["reward"]
            values = (head(ours.hidden) * ours.mask, head(padded.hidden) * ours.mask)
            torch.testing.assert_close(*values, atol=1e-4, rtol=0)
            torch.testing.assert_close(head(ours.last), head(padded.last), atol=1e-4, rtol=0)


def measured(policy: Policy, **more: Any) -> Any:
    policy.copy("reward", "value")
    return measure_replies(policy, REPLIES, **({"temperature": 0.8, "start": None} | more))


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


def test_values_are_read_before_a_token_and_scores_after_the_last(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    rollout = measured(policy)
    slow = PlainModel(tiny_base, policy.state("reward"), policy.heads["reward"].state_dict())
    for row, r in enumerate(REPLIES):
        values = [x.item() for x in slow.values(r.prompt, r.reply)]
        assert rollout.value[row, : len(r.reply)].tolist() == pytest.approx(values, abs=1e-4)
        assert rollout.score[row].item() == pytest.approx(slow.read(slow.hidden(r.ids)[-1]).item(), abs=1e-4)


def test_the_score_inside_ppo_is_the_score_of_the_reward_model(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    rollout = measured(policy)
    for name, scores in (("reward", rollout.score), ("judge", rollout.judge_score)):
        outside = score_sequences(policy, name, [r.ids for r in REPLIES])
        assert scores.tolist() == pytest.approx(outside, abs=1e-5)


def test_the_reference_is_the_bare_base_whatever_is_trained(tiny_base: Base) -> None:
    one, other = measured(a_learner(tiny_base, size=0.0)), measured(a_learner(tiny_base, size=0.2))
    torch.testing.assert_close(one.ref_logprob, other.ref_logprob)
    torch.testing.assert_close(one.ref_logprob, one.logprob, atol=1e-5, rtol=0)
    assert (other.logprob - other.ref_logprob).abs().max() > 0.1


def test_without_a_start_of_its_own_the_night_starts_at_the_reference(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    assert torch.equal(rollout.start_logprob, rollout.ref_logprob)


def test_micro_batches_change_no_number(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    whole, pieces = measured(policy), measure_replies(
        policy, REPLIES, temperature=0.8, start=None, tokens=16
    )  # fmt: skip
    for name in ("logprob", "ref_logprob", "value", "entropy", "score", "judge_score"):
        torch.testing.assert_close(getattr(whole, name), getattr(pieces, name), atol=1e-4, rtol=0)
    assert torch.equal(whole.mask, pieces.mask)
    assert whole.mask.sum(1).tolist() == [len(r.reply) for r in REPLIES]


def test_micro_batches_hold_everything_once_and_no_more_than_fits() -> None:
    lengths = [5, 9, 1, 7, 30, 2, 5]
    batches = list(micro_batches(lengths, 16))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) * max(lengths[i] for i in b) <= 16 or len(b) == 1 for b in batches)
    assert len(batches) < 7


def test_entropy_is_that_of_the_distribution(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base, size=0.0), temperature=1e4)
    assert rollout.entropy[rollout.mask].mean().item() == pytest.approx(math.log(259), abs=1e-3)
    assert not rollout.entropy[~rollout.mask].any()


def sampled(
    base: Base, *, as_likely: Mapping[int, int] = MappingProxyType({}), count: int = 40, seed: int = 0
) -> list[Reply]:
    """Replies of the bare base, with some tokens made as likely as others."""
    model = load_model(base, device=CPU, dtype=torch.float32, attention="sdpa")
    with torch.no_grad():
        weight = cast(Any, model.get_output_embeddings()).weight
        for token, other in as_likely.items():
            weight[token] = weight[other]
    prompts = [[1, 80 + i] for i in range(count)]
    return sample_replies(
        model, prompts, sampling=Sampling(max_new_tokens=12), end_of_turn=base.format.end_of_turn, seed=seed
    )


def test_a_reply_ends_at_the_template_s_end_of_turn_not_at_the_tokenizer_s_eos(home: Home) -> None:
    path = make_tiny_model(home.root / "other", eos="<|endoftext|>")
    base = load_base(str(path), home, lambda text: None)
    replies = sampled(base, as_likely={0: 46, END: 84})
    assert (base.tokenizer.eos_token_id, base.format.end_of_turn) == (0, END)
    assert 0 < sum(r.finished for r in replies) < len(replies)
    for r in replies:
        assert r.finished == (r.reply[-1] == END)
        assert END not in r.reply[:-1]
        assert r.finished or len(r.reply) == 12
    assert any(0 in r.reply for r in replies)


def test_the_same_seed_samples_the_same_replies_in_the_order_of_their_prompts(tiny_base: Base) -> None:
    one = sampled(tiny_base, seed=5)
    assert one == sampled(tiny_base, seed=5) != sampled(tiny_base, seed=6)
    assert [r.prompt for r in one] == [[1, 80 + i] for i in range(40)]
    assert len({tuple(r.reply) for r in one}) > 30


def test_every_reply_has_a_seed_of_its_own() -> None:
    seeds = {
        hash_seed(hash_seed(run, update), i) for run in range(3) for update in range(20) for i in range(20)
    }
    assert len(seeds) == 3 * 20 * 20


def test_logprobs_of_a_merged_model_are_those_of_the_worn_one(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    rollout = measured(policy)
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32, attention="sdpa")
    policy.write_merged("policy", merged)
    found = logprobs_of(merged, [r.prompt for r in REPLIES], [r.reply for r in REPLIES], temperature=0.8)
    for row, values in enumerate(found):
        assert values.tolist() == pytest.approx(rollout.logprob[row, : len(values)].tolist(), abs=1e-4)


def test_each_update_rolls_out_on_the_next_prompts_and_begins_again_at_the_end(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward", "value")
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32, attention="sdpa")
    prompts, sampling = [[1, 80 + i] for i in range(3)], Sampling(max_new_tokens=3)
    config = RefreshConfig(prompts_per_update=2, minibatch=2)
    seen = [
        [
            r.prompt[1] - 80
            for r in roll_out(policy, merged, prompts, config, sampling, update, None)[0].replies
        ]
        for update in range(3)
    ]
    assert seen == [[0, 1], [2, 0], [1, 2]]


def test_rollouts_come_from_the_policy_as_it_is_now(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward", "value")
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32, attention="sdpa")
    config = RefreshConfig(prompts_per_update=8, minibatch=2)
    roll_out(policy, merged, [[1, 80]], config, Sampling(max_new_tokens=3), 0, None)
    weights = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    policy.write_merged("policy", merged)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in merged.state_dict().items())
    plain = load_model(tiny_base, device=CPU, dtype=torch.float32, attention="sdpa").state_dict()
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in weights.items())


def test_metrics_count_real_tokens_only(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    wide = torch.nn.functional.pad
    padded = replace(
        rollout,
        mask=wide(rollout.mask, (0, 9)),
        **{n: wide(getattr(rollout, n), (0, 9), value=5.0) for n in ("logprob", "ref_logprob", "entropy")},
        start_logprob=wide(rollout.start_logprob, (0, 9), value=-5.0),
    )
    assert rollout_metrics(padded) == pytest.approx(rollout_metrics(rollout))


def test_metrics_say_what_the_replies_were_like(tiny_base: Base) -> None:
    rollout = measured(a_learner(tiny_base))
    metrics = rollout_metrics(rollout)
    assert metrics["length"] == pytest.approx(sum(len(r.reply) for r in REPLIES) / 5)
    assert (metrics["eos_rate"], metrics["empty_rate"]) == pytest.approx((3 / 5, 1 / 5))
    kl = [
        (rollout.logprob - rollout.ref_logprob)[i, : len(r.reply)].sum().item() for i, r in enumerate(REPLIES)
    ]
    assert metrics["kl"] == pytest.approx(sum(kl) / 5, abs=1e-5)
    assert metrics["kl_per_token"] == pytest.approx(sum(kl) / sum(len(r.reply) for r in REPLIES), abs=1e-5)


def test_one_reply_has_finite_metrics(tiny_base: Base, recwarn: pytest.WarningsRecorder) -> None:
    policy = a_learner(tiny_base)
    policy.copy("reward", "value")
    metrics = rollout_metrics(measure_replies(policy, REPLIES[:1], temperature=1.0, start=None))
    assert all(abs(value) < 1e6 for value in metrics.values()), metrics


def test_distinct_2_falls_where_replies_repeat_themselves() -> None:
    assert distinct_2([[1, 2, 3], [4, 5]]) == 1.0
    assert distinct_2([[1, 1, 1, 1, 1]]) == 1 / 4
    assert distinct_2([[1, 2], [1, 2]]) == 1 / 2
    assert distinct_2([[1], []]) == 1.0
