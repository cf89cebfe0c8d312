"""A row, which is one reply in the making, and how its next token is drawn from logits.

A row draws one uniform number a token from a generator of its own, so that its seed makes the reply whatever
else is in the batch. Knows token ids only.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor

from data.records import FinishReason, Sampling

_SEEDS = 2**63 - 1
"""A seed counts by its lowest 63 bits, as at vLLM: Python's generator would take -1 for 1."""

_LIKELIEST = 512
"""Tokens among which a nucleus is looked for first: to sort a whole vocabulary takes longer than a pass."""


@dataclass(eq=False)
class Row:
    """One reply in the making."""

    seed: int
    token_ids: list[int] = field(default_factory=list)
    """The reply so far; ends with the end-of-turn token where it finished by `stop`."""
    logprobs: list[float] = field(default_factory=list)
    """Natural logarithm of each token's probability under the model itself, at temperature 1."""
    finish_reason: FinishReason | None = None
    look_for_stop: Callable[[], bool] = lambda: False
    """Called at the last token that it may have: whether a stop text ends the reply there, not its length."""

    def __post_init__(self) -> None:
        # One number a token, whatever else is in the batch.
        self.uniform = random.Random(self.seed & _SEEDS).random


class Job(Protocol):
    """A prompt and the rows that reply to it."""

    @property
    def prompt(self) -> list[int]: ...
    @property
    def rows(self) -> list[Row]: ...
    @property
    def sampling(self) -> Sampling: ...


@dataclass(frozen=True)
class PlainJob:
    """A job and nothing besides: nobody reads its replies while they are written."""

    prompt: list[int]
    rows: list[Row]
    sampling: Sampling


def draw(logits: Tensor, rows: Sequence[Row], sampling: Sequence[Sampling], end_of_turn: int) -> list[int]:
    """Append a token to each row from its logits, (R, V) in float32, and end the rows that are complete."""
    uniforms = torch.tensor([row.uniform() for row in rows], dtype=torch.float64).to(logits.device)
    tokens = sample(logits, sampling, uniforms)
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    logprobs = (logits.gather(1, chosen)[:, 0] - logits.logsumexp(-1)).tolist()
    for row, settings, token, logprob in zip(rows, sampling, tokens, logprobs, strict=True):
        if row.finish_reason is not None:  # stopped from outside during this step
            continue
        row.logprobs.append(logprob)
        row.token_ids.append(token)
        if token == end_of_turn:
            row.finish_reason = "stop"
        elif len(row.token_ids) >= settings.max_new_tokens:
            row.finish_reason = "stop" if row.look_for_stop() else "length"
    return tokens


def sample(logits: Tensor, sampling: Sequence[Sampling], uniforms: Tensor) -> list[int]:
    """One token a row by inverse transform: the first whose cumulative probability exceeds the row's uniform.

    `logits` (R, V); `uniforms` (R,) in [0, 1). Temperature 0 takes the most likely token.
    """
    temperatures = [s.temperature for s in sampling]
    highest, greedy = logits.max(-1)
    assert bool(highest.isfinite().all()), "the model computed logits that are not finite"
    if not any(temperatures):
        return cast(list[int], greedy.tolist())
    # The type is named: while another thread loads a model, transformers sets what is usual for the process.
    divisors = torch.tensor(temperatures, dtype=torch.float32, device=logits.device)
    probabilities = torch.softmax(logits / divisors.clamp(min=1e-6)[:, None], dim=-1)
    if cut := [row for row, s in enumerate(sampling) if s.top_p < 1]:
        top_p = torch.tensor([sampling[row].top_p for row in cut], dtype=torch.float32, device=logits.device)
        probabilities[cut] = _nucleus(probabilities[cut], top_p)
    cumulative = probabilities.double().cumsum(-1)
    tokens = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    chosen = torch.where(divisors > 0, tokens.clamp(max=logits.shape[-1] - 1), greedy)
    return cast(list[int], chosen.tolist())


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the smallest set of tokens that reaches `top_p` (Holtzman et al. 2019)."""
    kept = torch.zeros_like(probabilities)
    likeliest, index = probabilities.topk(min(_LIKELIEST, probabilities.shape[-1]))
    is_enough = likeliest.sum(-1) >= top_p
    for rows, ordered, places in (
        (is_enough, likeliest[is_enough], index[is_enough]),
        (~is_enough, *probabilities[~is_enough].sort(-1, descending=True)),
    ):
        before = ordered.cumsum(-1) - ordered
        is_cut = before >= top_p[rows, None]
        is_cut[:, 0] = False  # the likeliest stays, though the smallest top_p are 0 in float32
        ordered = ordered.masked_fill(is_cut, 0.0)
        kept[rows] = kept[rows].scatter(-1, places, ordered)
    return kept
