"""trainer/correlation.py: Pearson's and Kendall's, against cases small enough to work out by hand."""

import math

import pytest
import torch

from tests.learners import ranked
from trainer.correlation import correlation, kendall_tau


def test_a_correlation_with_what_does_not_vary_is_0() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(x, 2 * x) == pytest.approx(1)
    assert correlation(x, torch.ones(3)) == correlation(x[:1], x[:1]) == 0


@pytest.mark.parametrize(
    "places, scores, tau",
    [
        ((1, 2, 3), (3.0, 2.0, 1.0), 1.0),
        ((1, 2, 3), (1.0, 2.0, 3.0), -1.0),
        ((1, 2, 3), (3.0, 1.0, 2.0), 1 / 3),
        ((1, 2, 2), (3.0, 2.0, 1.0), 2 / math.sqrt(2 * 3)),  # a tie that the scores do not share
        ((1, 2, 2), (3.0, 1.0, 1.0), 1.0),  # and one that they do
        ((1, 2, 3), (2.0, 1.0, 1.0), 2 / math.sqrt(3 * 2)),
        ((1, 2, 3), (1.0, 1.0, 1.0), 0.0),
        ((1, 1, 1), (3.0, 2.0, 1.0), None),
    ],
)
def test_kendall_s_tau_counts_ties_on_either_side(
    places: tuple[int, ...], scores: tuple[float, ...], tau: float | None
) -> None:
    found = kendall_tau(ranked("abc", places).pairs(), scores)
    assert found == (None if tau is None else pytest.approx(tau))


def test_tau_of_a_best_reply_is_over_what_was_said() -> None:
    assert kendall_tau(ranked("abc", (1, 2, 2), "best").pairs(), (3.0, 2.0, 1.0)) == pytest.approx(1)
