"""How far two measures of the same replies go together: 1 is all the way, -1 the opposite, 0 not at all."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.comparisons import Pair


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's, of two (N,); 0 where one of them does not vary."""
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1].nan_to_num()) if len(x) > 1 else 0.0


def kendall_tau(pairs: Sequence[Pair], scores: Sequence[float]) -> float | None:
    """tau-b of one ranking: (concordant - discordant) / sqrt(pairs untied by people x untied by scores).

    Over the pairs that were said: of `best`, winner against others only. None where people tied all of them;
    scores that are all equal agree with nothing, which is 0.
    """
    decided = [(scores[pair.better], scores[pair.worse]) for pair in pairs if pair.is_decided]
    if not decided:
        return None
    balance = sum((better > worse) - (better < worse) for better, worse in decided)
    untied = sum(scores[pair.better] != scores[pair.worse] for pair in pairs)
    return balance / math.sqrt(len(decided) * untied) if untied else 0.0
