"""trainer/optimiser.py: how the rate goes."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from trainer.optimiser import adamw


def rates(steps: int) -> list[float]:
    """The rate of each of `steps` steps, where 2 is the highest."""
    optimiser, schedule = adamw([nn.Parameter(torch.zeros(1))], 2.0, steps)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_in_a_line() -> None:
    found = rates(40)
    assert found[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert found[4] == pytest.approx(2.0)
    falls = [earlier - later for earlier, later in pairwise(found[4:39])]
    assert falls == pytest.approx([2.0 / 36] * len(falls))


def test_the_last_steps_are_no_smaller_than_a_twentieth() -> None:
    assert min(rates(100)) == rates(100)[-1] == pytest.approx(0.1)


def test_a_single_step_has_the_whole_rate() -> None:
    assert rates(1) == [2.0]


def test_nothing_pulls_an_adapter_to_zero() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimiser, _ = adamw([parameter], 2.0, 10)
    parameter.grad = torch.zeros(1)
    optimiser.step()
    assert parameter.item() == 1.0
