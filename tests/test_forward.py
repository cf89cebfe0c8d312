"""trainer/forward.py: replies read, whatever stands beside them in a batch."""

import math

import pytest
import torch

from chatbot.basemodel import Base
from chatbot.logits import PART_ROWS
from chatbot.models import load_model
from tests.learners import CPU, a_learner, some_replies
from tests.plain_ppo import PlainModel
from trainer.config import RefreshConfig
from trainer.forward import (
    TOKENS_PER_PASS,
    Reply,
    fit_tokens_per_pass,
    forward_replies,
    hash_seed,
    logprobs_of,
    micro_batches,
    reply_draws,
    reply_logprobs,
    reply_scores,
    reply_values,
    training_policy,
)

REPLIES = some_replies()


@pytest.mark.parametrize("name", ["policy", "reward-0"])
def test_padding_changes_neither_logprob_nor_value_nor_score(tiny_base: Base, name: str) -> None:
    policy = a_learner(tiny_base)
    head = policy.heads["reward-0"]
    with torch.no_grad(), policy.wear(name):
        padded = forward_replies(policy, REPLIES)
        for i, reply in enumerate(REPLIES):
            row, alone = (i, slice(len(reply.reply))), forward_replies(policy, [reply])
            assert alone.mask.all() and padded.mask[i].sum() == len(reply.reply)
            assert padded.tokens[row].tolist() == alone.tokens[0].tolist() == reply.reply
            figures = [
                (reply_logprobs(policy, padded, 0.8)[row], reply_logprobs(policy, alone, 0.8)[0]),
                (reply_values(head, padded)[row], reply_values(head, alone)[0]),
                (head(padded.pooled)[i], head(alone.pooled)[0]),
            ]
            drawn = zip(reply_draws(policy, padded, 0.8), reply_draws(policy, alone, 0.8), strict=True)
            for ours, its in [*figures, *((those[row], its[0]) for those, its in drawn)]:
                torch.testing.assert_close(ours, its, atol=1e-4, rtol=0)


def test_logits_read_in_parts_say_what_they_say_at_once(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = a_learner(tiny_base)
    moved = policy.parameters("policy")
    with policy.wear("policy"):
        forward = forward_replies(policy, REPLIES)
        monkeypatch.setitem(PART_ROWS, "cpu", 1000)
        (logits,) = policy.logits_in_parts(forward.hidden[forward.mask])
        tokens = forward.tokens[forward.mask, None]
        warm, plain = torch.log_softmax(logits / 0.8, -1), torch.log_softmax(logits, -1)
        wanted = [warm.gather(1, tokens)[:, 0], plain.gather(1, tokens)[:, 0], -(warm.exp() * warm).sum(-1)]
        gradients = torch.autograd.grad(wanted[0].sum(), moved)
        for rows in (3, 17, 32):
            monkeypatch.setitem(PART_ROWS, "cpu", rows)
            forward = forward_replies(policy, REPLIES)
            logprob = reply_logprobs(policy, forward, 0.8)
            found = [logprob, *reply_draws(policy, forward, 0.8)]
            for some, like in zip(found, [wanted[0], *wanted], strict=True):
                torch.testing.assert_close(some[forward.mask], like, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(torch.autograd.grad(logprob.sum(), moved), gradients)


def test_an_empty_reply_that_was_cut_scores_nothing_but_the_normalisation(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    head = policy.heads["judge"]
    head.mean.fill_(0.5)
    with torch.no_grad():
        nothing = float(head.bias) - 0.5
        empty, other = reply_scores(policy, "judge", [Reply([1, 80], [], False), REPLIES[0]])
    assert float(empty) == pytest.approx(nothing) and float(other) != pytest.approx(nothing)


def test_a_score_is_the_mean_over_the_tokens_and_what_their_number_is_worth(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    head = policy.heads["judge"]
    with torch.no_grad():
        means = reply_scores(policy, "judge", REPLIES) - head.of_length(torch.tensor([4, 2, 7, 1, 3]))
        head.length.fill_(-2.0)
        head.std.fill_(2.0)
        head.usual_length.fill_(math.log(4))
        scores = reply_scores(policy, "judge", REPLIES)
    worth = [-1.0 * math.log(len(r.reply) / 4) for r in REPLIES]
    torch.testing.assert_close(scores, means / 2 + torch.tensor(worth), atol=1e-5, rtol=0)


def test_a_value_foresees_the_usual_length_until_the_reply_is_longer(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    head = policy.heads["judge"]
    head.usual_length.fill_(math.log(4))
    found = []
    with torch.no_grad(), policy.wear("judge"):
        forward = forward_replies(policy, REPLIES[2:3])
        for length in (0.0, -2.0):
            head.length.fill_(length)
            found.append(reply_values(head, forward)[0])
    worth = [-2.0 * math.log(max(t, 4) / 4) for t in range(1, 8)]
    torch.testing.assert_close(found[1] - found[0], torch.tensor(worth), atol=1e-5, rtol=0)


def test_micro_batches_hold_everything_once_and_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 16)
    lengths = [5, 9, 1, 7, 30, 2, 5]
    batches = list(micro_batches(lengths, CPU))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) * max(lengths[i] for i in b) <= 16 or len(b) == 1 for b in batches)
    assert len(batches) < 7


def test_sequences_that_stay_together_count_with_all_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 40)
    lengths, rows = [10, 4, 20, 5], [2, 6, 2, 3]  # six of 4 beside three of 5 take 45
    assert list(micro_batches(lengths, CPU, rows)) == [[1], [3], [0], [2]]
    assert list(micro_batches(lengths, CPU, [1, 2, 1, 1])) == [[1, 3, 0], [2]]


def test_a_gpu_is_given_more_at_a_time_than_a_cpu() -> None:
    lengths = [100] * 40
    on_cpu, on_gpu = (list(micro_batches(lengths, torch.device(kind))) for kind in ("cpu", "cuda"))
    assert [len(batch) for batch in on_cpu] == [10] * 4
    assert len(on_gpu) == 1


def test_the_training_copy_is_opened_on_as_many_threads_as_were_asked_for(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(torch, "set_num_threads", done.append)
    monkeypatch.setattr("trainer.forward.Policy", lambda base, **how: done.append(how["dtype"]))
    monkeypatch.setattr("trainer.forward.fit_tokens_per_pass", lambda policy, depth: done.append(depth))
    training_policy(tiny_base, RefreshConfig(threads=2, precision="bfloat16", depth=0.25))
    assert done == [2, torch.bfloat16, 0.25]


@pytest.mark.parametrize(("free", "room"), [(2**40, 4096), (0, 512), (2 * 1000, 1000), (2 * 5000, 4096)])
def test_a_pass_on_a_gpu_is_as_large_as_half_of_its_free_memory_bears(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, free: int, room: int
) -> None:
    monkeypatch.setitem(TOKENS_PER_PASS, "cuda", 4096)
    policy, config = a_learner(tiny_base), tiny_base.config
    token = 68 * config.hidden_size * config.num_hidden_layers // 2 + 10 * config.vocab_size
    monkeypatch.setattr("trainer.forward.free_bytes", lambda device: free * token)
    policy.dtype = torch.bfloat16
    fit_tokens_per_pass(policy, 0.5)
    assert TOKENS_PER_PASS["cuda"] == 4096, "on a CPU nothing is asked"
    policy.device = torch.device("cuda")
    fit_tokens_per_pass(policy, 0.5)
    assert (TOKENS_PER_PASS["cpu"], TOKENS_PER_PASS["cuda"]) == (1024, room)


def test_every_reply_has_a_seed_of_its_own() -> None:
    seeds = {
        hash_seed(hash_seed(run, update), i) for run in range(3) for update in range(20) for i in range(20)
    }
    assert len(seeds) == 3 * 20 * 20


def test_logprobs_of_a_merged_model_are_those_of_a_slow_one_with_the_adapter(tiny_base: Base) -> None:
    policy = a_learner(tiny_base)
    merged = load_model(tiny_base, device=CPU, dtype=torch.float32)
    policy.write_merged("policy", merged)
    slow = PlainModel(tiny_base, policy.state("policy"), None)
    found = logprobs_of(merged, [r.prompt for r in REPLIES], [r.reply for r in REPLIES], temperature=0.8)
    for r, values in zip(REPLIES, found, strict=True):
        expected = [x.item() for x in slow.logprobs(r.prompt, r.reply, 0.8)]
        assert values.tolist() == pytest.approx(expected, abs=1e-4)
