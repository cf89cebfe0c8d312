"""How much a person's rankings tell, from how well models that never saw them predicted them.

Of a pair of replies, let a person say what is right with probability q and a model with probability m, each
erring on its own: the "one-coin" worker of crowdsourcing (Dawid and Skene 1979, with one rate a person). They
agree with probability qm + (1 - q)(1 - m), so that

    2 agreement - 1 = (2q - 1)(2m - 1)

and m, which nobody knows, falls out where the same models are held against everybody:

    reliability = (2 agreement of the person - 1) / (2 agreement of all others - 1)

It is 1 for someone as predictable as the others, 0 for someone who tosses a coin. Whoever is more predictable
is worth no more than 1, and nobody less than FLOOR: a taste that others do not share is still somebody's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.comparisons import FEWEST_TO_CAP, RankedTurn
from data.records import Version

FLOOR = 0.1
PRIOR_PAIRS = 60
"""Pairs on which a person is taken to agree like the others before any is known: ten rankings of four."""
_LEAST_AGREEMENT = 0.55
"""Models that agree less with the others say nothing of anybody."""


def reliabilities(report: Mapping[str, Any]) -> dict[str, float]:
    """By person, from 0.1 to 1, of everybody whose rankings were predicted in the night of this report.

    Empty where they are too few for a majority to tell who errs, as it is for the cap on a person.
    """
    hits: dict[str, float] = {}
    pairs: dict[str, float] = {}
    for model in ("reward", "judge"):  # each was examined on what the other learned from
        for person, found in (report.get(model) or {}).get("accuracy_by_person", {}).items():
            hits[person] = hits.get(person, 0.0) + found["accuracy"] * found["pairs"]
            pairs[person] = pairs.get(person, 0.0) + found["pairs"]
    if len(pairs) < FEWEST_TO_CAP:
        return {}
    all_hits, all_pairs = sum(hits.values()), sum(pairs.values())
    return {
        person: _reliability(hits[person], pairs[person], all_hits - hits[person], all_pairs - pairs[person])
        for person in pairs
    }


def _reliability(hits: float, pairs: float, others_hits: float, others_pairs: float) -> float:
    others = others_hits / others_pairs
    if others < _LEAST_AGREEMENT:
        return 1.0
    agreement = (hits + PRIOR_PAIRS * others) / (pairs + PRIOR_PAIRS)
    return min(1.0, max(FLOOR, (2 * agreement - 1) / (2 * others - 1)))


def relied_on(turns: Sequence[RankedTurn], past: Sequence[Version]) -> list[RankedTurn]:
    """The turns with each person's reliability by the newest of `past`, oldest first, that measured them.

    A night examines some of its rankings only, so that whoever gave none of them has a figure of an earlier
    one. Imports have none and measure nobody: their pairs may be harder or easier, and they carry a weight
    of their own.
    """
    found: dict[str, float] = {}
    for version in past:
        found |= reliabilities(version.report)
    return [
        turn if turn.source == "imported" else replace(turn, reliability=found.get(turn.person_id, 1.0))
        for turn in turns
    ]
