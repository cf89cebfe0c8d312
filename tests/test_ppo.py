"""trainer/ppo.py: each equation against a slow one, and each sign by what it does."""

import pytest
import torch
from torch import Tensor

from tests.plain_ppo import plain_gae, plain_policy_term, plain_value_term, plain_whiten
from trainer.endings import Endings
from trainer.ppo import (
    adapt_beta,
    apply_eos_rule,
    gae,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)

MASK = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, True, False]])
LENGTHS = [4, 1, 3]


def noise(seed: int, scale: float = 1.0) -> Tensor:
    """(3, 4), with numbers at padding too: nothing there may matter."""
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def real(x: Tensor) -> list[list[float]]:
    """The real tokens of each row as numbers."""
    return [row[:n].tolist() for row, n in zip(x, LENGTHS, strict=True)]


def flat(x: Tensor) -> list[float]:
    return [number for row in real(x) for number in row]


# The equations


def test_the_rewards_of_a_reply_sum_to_its_score_less_beta_times_its_kl() -> None:
    logprob, ref, score = noise(1), noise(2), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    rewards = token_rewards(logprob, ref, score, MASK, beta=0.1)
    kl = ((logprob - ref) * MASK).sum(1)
    torch.testing.assert_close(rewards.sum(1), score - 0.1 * kl)


def test_the_score_stands_at_the_last_token_and_straying_from_the_reference_costs() -> None:
    logprob, score = torch.zeros(3, 4), torch.tensor([1.0, 2.0, 3.0])
    rewards = token_rewards(logprob, logprob - 1, score, MASK, beta=0.25)
    assert rewards.tolist() == [[-0.25, -0.25, -0.25, 0.75], [1.75, 0, 0, 0], [-0.25, -0.25, 2.75, 0]]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_over_the_future_that_defines_it(gamma: float, lam: float) -> None:
    rewards, values = noise(3) * MASK, noise(4)
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    for row, n in enumerate(LENGTHS):
        slow = plain_gae(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(slow[0])
        assert returns[row, :n].tolist() == pytest.approx(slow[1])
    assert not advantages[~MASK].any() and not returns[~MASK].any()


def test_whitening_gives_mean_0_and_variance_1_over_the_real_tokens_of_the_batch() -> None:
    x = noise(5) * 3 + 2
    white = whiten(x, MASK)
    assert flat(white) == pytest.approx([number for row in plain_whiten(real(x)) for number in row])
    assert float(white[MASK].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[MASK].var(correction=0)) == pytest.approx(1)
    assert not white[~MASK].any()


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_the_policy_loss_is_the_mean_of_what_each_token_loses(scale: float) -> None:
    old, advantage = noise(6), noise(7)
    new = old + noise(8, scale)
    loss, stats = policy_loss(new, old, advantage, MASK, clip=0.2)
    terms = [
        float(plain_policy_term(n, o, a, 0.2))
        for n, o, a in zip(flat(new), flat(old), flat(advantage), strict=True)
    ]
    assert float(loss) == pytest.approx(sum(terms) / len(terms))
    ratios = (new - old)[MASK].exp()
    assert stats["ratio_mean"] == pytest.approx(float(ratios.mean()))
    assert stats["ratio_max"] == pytest.approx(float(ratios.max()))
    assert stats["approx_kl"] == pytest.approx(float((ratios - 1 - ratios.log()).mean()))


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_the_value_loss_is_the_mean_of_what_each_token_loses(scale: float) -> None:
    old, returns = noise(9), noise(10)
    new = old + noise(11, scale)
    terms = [
        plain_value_term(n, o, r, 0.2) for n, o, r in zip(flat(new), flat(old), flat(returns), strict=True)
    ]
    loss, stats = value_loss(new, old, returns, MASK, 0.2)
    assert float(loss) == stats["value_loss"] == pytest.approx(sum(terms) / len(terms))
    clipped = [abs(n - o) > 0.2 for n, o in zip(flat(new), flat(old), strict=True)]
    assert stats["value_clip_fraction"] <= sum(clipped) / len(clipped)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_step_down_the_loss_makes_good_tokens_likelier_and_bad_ones_rarer(advantage: float) -> None:
    logprob = torch.zeros(3, 4, requires_grad=True)
    loss, _ = policy_loss(logprob, torch.zeros(3, 4), torch.full((3, 4), advantage), MASK, 0.2)
    loss.backward()
    assert logprob.grad is not None
    assert ((-logprob.grad * advantage)[MASK] > 0).all()
    assert not logprob.grad[~MASK].any()


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True)],
)
def test_clipping_stops_only_what_has_gone_far_enough_the_good_way(
    ratio: float, advantage: float, moves: bool
) -> None:
    logprob = torch.full((1, 1), ratio).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, stats = policy_loss(logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, 0.2)
    loss.backward()
    assert logprob.grad is not None
    assert bool(logprob.grad.any()) == moves
    assert stats["clip_fraction"] == float(not moves)


def test_a_value_within_the_clip_range_is_not_clipped_by_rounding() -> None:
    draw = torch.Generator().manual_seed(0)
    value, old, target = 0.2 * torch.rand(3, 4000, generator=draw) - 0.1
    rows = (part[None] for part in (value, old, 10 * target))
    _, stats = value_loss(*rows, torch.ones(1, 4000, dtype=torch.bool), 0.2)
    assert stats["value_clip_fraction"] == 0


def test_a_step_down_the_value_loss_goes_to_the_return() -> None:
    value = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    value_loss(value, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), mask, 0.2)[0].backward()
    assert value.grad is not None
    assert value.grad.sign().tolist() == [[-1, 1]]


def test_what_stands_at_padding_changes_no_loss() -> None:
    new, old, advantage = noise(12), noise(13), noise(14)
    other = torch.where(MASK, new, torch.tensor(9.0, dtype=torch.float64))
    assert policy_loss(new, old, advantage, MASK, 0.2) == policy_loss(other, old, advantage, MASK, 0.2)
    assert value_loss(new, old, advantage, MASK, 0.2) == value_loss(other, old, advantage, MASK, 0.2)
    assert masked_mean(new, MASK) == masked_mean(other, MASK)


def test_a_cut_reply_scores_less_than_nothing_where_the_reference_finishes() -> None:
    score, finished = torch.tensor([2.0, 2.0, -0.5]), torch.tensor([True, False, False])
    assert apply_eos_rule(score, finished, endings=Endings(0.8)).tolist() == [2.0, -1.0, -1.5]


def test_a_cut_reply_keeps_its_score_where_the_reference_never_ends() -> None:
    score, finished = torch.tensor([2.0, 2.0, -0.5]), torch.tensor([True, False, False])
    assert torch.equal(apply_eos_rule(score, finished, endings=Endings(0.0)), score)


def test_ending_is_paid_with_what_being_cut_gains_and_more_where_it_is_usual() -> None:
    score, finished = torch.tensor([2.0, 2.0, -0.5]), torch.tensor([True, False, False])
    seldom, usual = (Endings(rate, 8, at_first=0.75) for rate in (0.5, 0.9))
    assert apply_eos_rule(score, finished, seldom).tolist() == [3.25, 2.0, -0.5]
    assert apply_eos_rule(score, finished, usual).tolist() == [2.0, -1.0, -1.5]


def test_beta_rises_where_the_kl_is_too_large_and_never_by_more_than_a_fifth() -> None:
    assert adapt_beta(0.1, kl=4.0, target=2.0) == pytest.approx(0.12)
    assert adapt_beta(0.1, kl=1.0, target=2.0) == pytest.approx(0.08)
    assert adapt_beta(0.1, kl=2.2, target=2.0) == pytest.approx(0.11)
    assert adapt_beta(0.1, kl=2.0, target=2.0) == pytest.approx(0.1)
    assert adapt_beta(0.1, kl=9.0, target=0.0) == 0.1


def test_the_parts_of_a_step_add_up_to_the_whole_however_they_are_shared() -> None:
    new, old, other, count = noise(15), noise(16), noise(17), sum(LENGTHS)
    for loss in (policy_loss, value_loss):
        whole, stats = loss(new, old, other, MASK, 0.2)
        rows = [loss(*(x[[i]] for x in (new, old, other, MASK)), 0.2, count) for i in range(3)]
        assert float(sum(part for part, _ in rows)) == pytest.approx(float(whole))
        for name in stats.keys() - {"ratio_max"}:
            assert sum(found[name] for _, found in rows) == pytest.approx(stats[name])
