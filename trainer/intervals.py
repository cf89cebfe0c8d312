"""Intervals for shares and differences, of outcomes that come in groups which are not independent.

A ranking of four replies gives six pairs and a conversation many rankings, and they stand or fall together;
so whole conversations are resampled, never pairs.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist

_FEW_GROUPS = 10


def by_group(outcomes: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """The outcomes of each group, whose name stands before each, in the order they came."""
    groups: dict[str, list[float]] = {}
    for name, outcome in outcomes:
        groups.setdefault(name, []).append(outcome)
    return groups


def bootstrap_by_group(groups: Sequence[Sequence[float]], seed: int, samples: int = 1000) -> list[float]:
    """A 95 % interval of the mean, resampling whole groups; Wilson's too where they are few, or all won.

    A handful of groups that agree, or any number of them that were all won or all lost, would bootstrap to an
    interval of no width, which nobody should trust. Outcomes lie from 0 to 1.
    """
    sums, counts = [sum(group) for group in groups], [len(group) for group in groups]
    low, high = _percentiles(len(groups), seed, samples, lambda chosen: _mean(sums, counts, chosen))
    mean = sum(sums) / sum(counts)
    if len(groups) >= _FEW_GROUPS and not low == high in (0.0, 1.0):
        low, high = _widened([low, high], mean, len(groups))
        return [max(low, 0.0), min(high, 1.0)]
    wilson = wilson_interval(mean, len(groups))
    return [min(low, wilson[0]), max(high, wilson[1])]


def paired_bootstrap(
    groups: Sequence[Sequence[tuple[float, float]]], seed: int, samples: int = 1000
) -> list[float]:
    """A 95 % interval of the mean difference of (ours, theirs), both measured on the same outcomes.

    Resamples whole groups. What is hard for both cancels, so it is narrower than two intervals side by side.
    """
    differences = [sum(ours - theirs for ours, theirs in group) for group in groups]
    counts = [len(group) for group in groups]
    found = _percentiles(len(groups), seed, samples, lambda chosen: _mean(differences, counts, chosen))
    return _widened(found, sum(differences) / sum(counts), len(groups))


def wilson_interval(rate: float, count: int, confidence: float = 0.95) -> list[float]:
    """Wilson's score interval of a share among `count` independent outcomes."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return [centre - half, centre + half]


def _percentiles(
    groups: int, seed: int, samples: int, statistic: Callable[[Sequence[int]], float]
) -> list[float]:
    """The middle 95 % of `statistic` over `samples` draws of `groups` groups with replacement."""
    pick = random.Random(seed)
    found = sorted(statistic(pick.choices(range(groups), k=groups)) for _ in range(samples))
    return [found[int(0.025 * samples)], found[int(0.975 * samples) - 1]]


def _widened(interval: Sequence[float], mean: float, groups: int) -> list[float]:
    """A percentile interval as wide about its mean as so many groups allow: some 1.2 times at 10 of them.

    Resampling finds only (n - 1) / n of the variance, and takes the normal distribution for Student's t.
    """
    if groups == 1:
        return list(interval)
    factor = _student_t(groups - 1) / NormalDist().inv_cdf(0.975) * math.sqrt(groups / (groups - 1))
    return [mean + factor * (end - mean) for end in interval]


def _student_t(degrees: int) -> float:
    """Student's t that 2.5 % lie above, by Cornish and Fisher (Abramowitz and Stegun 26.7.5).

    Within 2 % from 4 degrees on; too small below that, by 4 % at 3 and 10 % at 2.
    """
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _mean(sums: Sequence[float], counts: Sequence[int], chosen: Sequence[int]) -> float:
    return sum(sums[i] for i in chosen) / sum(counts[i] for i in chosen)
