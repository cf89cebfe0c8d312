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


def nats_off(canaries: Sequence[Canary], logprobs: Sequence[float]) -> float:
    """How far `logprobs`, the mean of each canary's reply, lie from what was told, in nats a token."""
    tokens = [len(canary["ids"]) - canary["reply_start"] for canary in canaries]
    off = [abs(own - told["logprob"]) for own, told in zip(logprobs, canaries, strict=True)]
    return sum(n * nats for n, nats in zip(tokens, off, strict=True)) / sum(tokens)


def tolerance(canaries: Sequence[Canary], dtype: torch.dtype, *, four_bit: bool) -> float:
    """How far off a build in this format may be."""
    told = canaries[0]
    if told.get("four_bit", False) != four_bit:
        return OTHER_FORMAT_TOLERANCE
    theirs = torch.bfloat16 if told.get("bfloat16", False) else torch.float32
    return max(CANARY_TOLERANCE[dtype], CANARY_TOLERANCE[theirs])
