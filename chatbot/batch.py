"""Sequences of different length as one rectangle of tokens: what a model reads in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of different length as one rectangle. Masks come from lengths, never from a token's id."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, True on real tokens
    positions: Tensor  # (B, T)

    @staticmethod
    def of(
        sequences: Sequence[Sequence[int]], device: torch.device, left_pad: int | None = None
    ) -> "TokenBatch":
        """Pads on the right; with `left_pad`, on the left to the longest sequence plus that many."""
        width = max(len(s) for s in sequences) + (left_pad or 0)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            start = 0 if left_pad is None else width - len(sequence)
            ids[row, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, start : start + len(sequence)] = True
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return TokenBatch(ids.to(device), mask.to(device), positions.to(device))
