"""trainer/reward.py: rankings become a loss, a loss a judge, and the judge an examination it can fail."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from chatbot.basemodel import Base
from chatbot.policy import Policy
from data.comparisons import RankedTurn
from data.errors import Refused
from tests.learners import CPU, END, a_learner, ranked, some_replies
from trainer.config import RefreshConfig
from trainer.reward import (
    all_bad_loss,
    bootstrap_by_group,
    evaluate,
    normalise,
    passes,
    ranking_loss,
    score_sequences,
    tokenise,
    train_reward,
    wilson_interval,
    winners_direction,
)

CONFIG = RefreshConfig(rank=4, reward_epochs=4, reward_lr=5e-3, reward_batch=4, reward_steps=1)


def gradient(scores: Sequence[float], turn: RankedTurn) -> list[float]:
    """Of the ranking loss, by score."""
    leaf = torch.tensor(scores, requires_grad=True)
    ranking_loss(leaf, turn.pairs()).backward()
    assert leaf.grad is not None
    return leaf.grad.tolist()


def test_with_two_replies_the_loss_is_the_pairwise_loss() -> None:
    loss = ranking_loss(torch.tensor([0.3, 1.1]), ranked("ab", (2, 1)).pairs())
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-(1.1 - 0.3)))))


def test_the_loss_of_k_replies_is_the_mean_over_all_pairs() -> None:
    scores = [0.2, -1.0, 0.7, 0.1]
    loss = ranking_loss(torch.tensor(scores), ranked("abcd", (2, 1, 3, 2)).pairs())
    better = [(1, 0), (1, 2), (1, 3), (0, 2), (3, 2)]
    terms = [math.log1p(math.exp(scores[j] - scores[i])) for i, j in better]
    d = scores[0] - scores[3]
    terms.append(0.5 * math.log1p(math.exp(-d)) + 0.5 * math.log1p(math.exp(d)))
    assert float(loss) == pytest.approx(sum(terms) / 6)


def test_a_tie_pulls_equal_scores_nowhere_and_unequal_ones_together() -> None:
    tie = ranked("ab", (1, 1))
    assert gradient([0.4, 0.4], tie) == [0, 0]
    first, second = gradient([1.0, 0.0], tie)
    assert first > 0 > second


def test_a_step_down_the_loss_raises_the_winner() -> None:
    first, second, third = gradient([0.0, 0.0, 0.0], ranked("abc", (2, 1, 3)))
    assert second < 0 < third
    assert first == pytest.approx(0)


def test_best_sets_the_winner_against_the_others_and_says_nothing_among_them() -> None:
    turn = ranked("abc", (2, 1, 2), "best")
    assert turn.pairs() == [(1, 0, 1.0), (1, 2, 1.0)]
    first, second, third = gradient([5.0, 0.0, -5.0], turn)
    assert second < 0 and first > third > 0


def test_all_bad_pushes_every_reply_down_and_leaves_the_mean_it_is_held_against() -> None:
    scores, mean = torch.tensor([0.0, 2.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    all_bad_loss(scores, mean).backward()
    assert scores.grad is not None and (scores.grad > 0).all()
    assert scores.grad[1] > scores.grad[0]
    assert mean.grad is None


def test_a_reply_ends_with_its_end_of_turn_unless_it_was_cut(tiny_base: Base) -> None:
    turn = replace(ranked(["one", "two"], (1, 2)), cut=(False, True))
    whole, cut = tokenise([turn], tiny_base.format)[0].sequences
    assert (whole[-1] == END, cut[-1] == END) == (True, False)
    assert whole[:-4] == cut[:-3] == tiny_base.format.encode(turn.prompt)


def likes_z(count: int, first: int = 0) -> list[RankedTurn]:
    """Rankings by a person who wants the letter z, wherever it stands."""
    pairs = [("zz z", "qq"), ("a", "az"), ("qz", "q"), ("bb", "bz")]
    return [
        ranked(pairs[i % 4], (1, 2) if i % 4 in (0, 2) else (2, 1), conversation=f"c{i}", question=f"q{i}")
        for i in range(first, first + count)
    ]


def a_trained(base: Base, turns: Sequence[RankedTurn], config: RefreshConfig = CONFIG) -> Policy:
    policy = Policy(base, device=CPU, dtype=torch.float32)
    train_reward(policy, "reward", turns, config, seed=0, tell=lambda step, fraction, metrics: None)
    return policy


def test_a_reward_model_learns_what_the_rankings_prefer_and_says_so_on_others(tiny_base: Base) -> None:
    policy = a_trained(tiny_base, likes_z(24))
    report = evaluate(policy, "reward", likes_z(16, first=100))
    assert report["accuracy"] > 0.9
    assert (report["pairs"], report["rankings"], report["ties"]) == (16, 16, 0)
    assert report["accuracy_interval"][0] > 0.5
    assert report["kendall_tau"] == pytest.approx(2 * report["accuracy"] - 1)
    assert report["always_longest"] == pytest.approx(0.875)  # bb and bz are equally long
    assert report["always_first_shown"] == pytest.approx(0.5)


def test_training_tells_every_step_and_moves_nothing_else(tiny_base: Base) -> None:
    policy = Policy(tiny_base, device=CPU, dtype=torch.float32)
    policy.add("judge", seed=3, with_head=True)
    before = policy.keep("judge")
    heard: list[tuple[int, float]] = []

    def tell(step: int, fraction: float, metrics: dict[str, float]) -> None:
        heard.append((step, fraction))

    train_reward(policy, "reward", likes_z(6), CONFIG, seed=0, tell=tell)
    assert heard == [(i, i / 8) for i in range(1, 9)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in policy.state("judge").items())


def test_a_heavier_ranking_pulls_harder(tiny_base: Base) -> None:
    one, other = (ranked(["aaa", "bbb"], places, conversation="c") for places in ((1, 2), (2, 1)))
    for weights, winner in (((1.0, 0.1), 0), ((0.1, 1.0), 1)):
        turns = [replace(t, weight=w) for t, w in zip((one, other), weights, strict=True)]
        policy = a_trained(tiny_base, turns, replace(CONFIG, reward_epochs=8))
        sequences = tokenise([one], tiny_base.format)[0].sequences
        scores = score_sequences(policy, "reward", sequences)
        assert scores[winner] == max(scores)


def test_all_bad_replies_come_to_score_less_than_ranked_ones(tiny_base: Base) -> None:
    bad = [ranked(["mm", "m"], (1, 1), "all_bad", conversation=f"b{i}", question=f"q{i}") for i in range(12)]
    even = [
        ranked(["nn", "n"], (1 + i % 2, 2 - i % 2), conversation=f"e{i}", question=f"q{i}") for i in range(12)
    ]
    sequences = [s for t in tokenise([bad[0], even[0]], tiny_base.format) for s in t.sequences]
    gaps = []
    for turns in (even, [*bad, *even]):
        policy = a_trained(tiny_base, turns, replace(CONFIG, reward_epochs=8))
        scores = score_sequences(policy, "reward", sequences)
        gaps.append(sum(scores[:2]) / 2 - sum(scores[2:]) / 2)
    assert gaps[1] < gaps[0] - 0.5 and gaps[1] < 0


def test_rankings_without_a_preference_are_refused(tiny_base: Base) -> None:
    ties = [ranked(["a", "b"], (1, 1))]
    with pytest.raises(Refused, match="The rankings hold no preference, only ties - rank some"):
        a_trained(tiny_base, ties)


def test_few_rankings_are_gone_over_more_often_but_not_for_ever() -> None:
    config = RefreshConfig(reward_epochs=2, reward_batch=2, reward_steps=60)
    assert [passes(n, config) for n in (2, 30, 40, 60, 1000)] == [4, 4, 3, 2, 2]


def test_after_normalisation_the_reference_scores_0_with_a_spread_of_1(tiny_base: Base) -> None:
    policy, replies = a_learner(tiny_base), some_replies()
    raw = torch.tensor(score_sequences(policy, "reward", [r.ids for r in replies]))
    for _ in range(2):  # normalising again changes nothing
        normalise(policy, "reward", replies)
        scores = torch.tensor(score_sequences(policy, "reward", [r.ids for r in replies]))
        assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
        assert float(scores.std()) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std(), atol=1e-4, rtol=0)


def test_one_reply_is_no_reference(tiny_base: Base) -> None:
    with pytest.raises(Refused, match="give at least two prompts"):
        normalise(a_learner(tiny_base), "reward", some_replies()[:1])


def test_scores_come_in_order_however_they_are_batched(tiny_base: Base) -> None:
    policy, ids = a_learner(tiny_base), [r.ids for r in some_replies()]
    alone = [score_sequences(policy, "judge", [one])[0] for one in ids]
    assert score_sequences(policy, "judge", ids, tokens=20) == pytest.approx(alone, abs=1e-5)
    assert F.mse_loss(torch.tensor(alone), torch.tensor(alone[::-1])) > 0


def test_an_examination_without_a_decided_pair_says_that_it_knows_nothing(tiny_base: Base) -> None:
    report = evaluate(a_learner(tiny_base), "judge", [ranked(["a", "b"], (1, 1))])
    assert (report["pairs"], report["accuracy"], report["accuracy_interval"]) == (0, 0.5, [0.0, 1.0])


def test_conversations_of_ties_alone_do_not_disturb_the_interval(tiny_base: Base) -> None:
    ties = [ranked(["a", "b"], (1, 1), conversation=f"t{i}") for i in range(3)]
    report = evaluate(a_learner(tiny_base), "judge", [*ties, *likes_z(1)])
    assert (report["pairs"], report["ties"]) == (1, 0.75)
    low, high = report["accuracy_interval"]
    assert low < 0.5 < high


def test_the_interval_resamples_conversations_and_not_pairs() -> None:
    """Sixty pairs that come from twelve conversations, each all right or all wrong, tell little."""
    together = bootstrap_by_group([[float(i % 3 > 0)] * 5 for i in range(12)], seed=0)
    apart = bootstrap_by_group([[float(i % 3 > 0)] for i in range(60)], seed=0)
    assert together[1] - together[0] > 1.8 * (apart[1] - apart[0])
    assert together[0] < 2 / 3 < together[1]


def test_a_handful_that_agree_give_no_certainty() -> None:
    low, high = bootstrap_by_group([[1.0]] * 3, seed=0)
    assert low < 0.5 and high == pytest.approx(1.0)


def test_wilson_s_interval_is_the_textbook_s() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-3)
    assert wilson_interval(1.0, 10) == pytest.approx([0.7225, 1.0], abs=1e-3)


def test_the_winners_direction_is_the_rankings_own_taste_for_length() -> None:
    assert winners_direction([ranked(["a", "bbb", "cc"], (1, 3, 2))]) == -1
    assert winners_direction([ranked(["a", "bbb", "cc"], (3, 1, 2))]) == 1
    assert winners_direction([ranked(["a", "bb"], (1, 2)), ranked(["a", "bb"], (2, 1))]) == 0
    assert winners_direction([ranked(["aa", "bb"], (1, 2)), ranked(["a", "bb"], (1, 1))]) == 0
