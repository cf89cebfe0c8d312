"""Does a version compute here what it did where it was trained? The measure, and how far off it may be.

A manifest holds prompts with replies and what the trainer's build said of their tokens (trainer/canary.py).
Whoever is to serve the version computes the same; this file compares.
"""

from collections.abc import Sequence

import torch

from chatbot.manifest import Canary

CANARY_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.08}
"""Largest difference of a reply token's log-probability, in nats, between manifest and own build, as the mean
over the tokens of all canaries. The bfloat16 bound is measured: three versions of the embedded model differ
by at most 0.034, in four bits by 0.039; with the base in their place by at least 0.23. One short reply alone
may differ by 0.9."""

OTHER_FORMAT_TOLERANCE = 1.0
"""The same where only one of the two builds is in four bits. NF4 itself moves the embedded model by 0.31 to
0.66 nats a token, as far as some versions lie from their base: this bound finds what is broken, not what is
another version; that is left to the hashes."""


def too_far_off(
    canaries: Sequence[Canary], logprobs: Sequence[float], dtype: torch.dtype, *, four_bit: bool
) -> str | None:
    """How far `logprobs`, the mean of each canary's reply, lie from what was told, in words; None where a
    build in this format may lie so far off."""
    tokens = [len(canary["ids"]) - canary["reply_start"] for canary in canaries]
    differences = [abs(own - told["logprob"]) for own, told in zip(logprobs, canaries, strict=True)]
    off = sum(n * nats for n, nats in zip(tokens, differences, strict=True)) / sum(tokens)
    may_be = _tolerance(canaries[0], dtype, four_bit)
    if off <= may_be:  # never so of a nan
        return None
    return f"{off:.4f} nats a token off, {may_be} allowed"


def _tolerance(told: Canary, dtype: torch.dtype, four_bit: bool) -> float:
    if told.get("four_bit", False) != four_bit:
        return OTHER_FORMAT_TOLERANCE
    theirs = torch.bfloat16 if told.get("bfloat16", False) else torch.float32
    return max(CANARY_TOLERANCE[dtype], CANARY_TOLERANCE[theirs])
