"""Rows being written together: one prefill a prompt, then one forward pass a step for every unfinished row.

A row is one reply to one prompt. The K replies to a prompt share its prefill: its keys and values are
computed once and repeated. Prompts of different length are padded on the left. A finished row leaves
the batch, so the batch only shrinks. Served turns and PPO's rollouts go through here alike.

Knows token ids only: no text, no versions, no queue. Those lie in engine.py.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from chatbot.models import TokenBatch, logits_of
from data.records import FinishReason, Sampling


@dataclass
class Row:
    """One reply in the making."""

    seed: int
    token_ids: list[int] = field(default_factory=list)
    """The reply so far; ends with the end-of-turn token where it finished by `stop`."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.uniform = random.Random(self.seed).random  # one number a token, whatever else is in the batch


class Decoding:
    """N prompts x K rows, decoded a step at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[Sequence[Row]],
        sampling: Sequence[Sampling],
        end_of_turn: int,
    ) -> None:
        """`rows[i]` are the replies to `prompts[i]`, drawn by `sampling[i]`."""
        self._model = model
        self._prompts = prompts
        self._per_prompt = rows
        self._rows = [row for group in rows for row in group]
        self._sampling = [s for s, group in zip(sampling, rows, strict=True) for _ in group]
        self._end_of_turn = end_of_turn
        self._logits: Tensor | None = None  # (R, V) of the next token
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._positions = torch.empty(0)

    @property
    def is_finished(self) -> bool:
        return not self._rows

    @property
    def width(self) -> int:
        """How many rows the next step decodes."""
        return len(self._rows)

    @torch.inference_mode()
    def step(self) -> None:
        """Append one token to every unfinished row; the first call prefills."""
        if self._logits is None:
            self._prefill()
        self._drop_finished()
        if self._rows:
            tokens = self._choose()
            self._record(tokens)
            self._drop_finished()
        if self._rows:
            self._advance()

    def _prefill(self) -> None:
        # 1) One forward pass over the prompts, one row each.
        batch = TokenBatch.of(self._prompts, self._model.device, left_pad=0)
        self._cache = DynamicCache(config=self._model.config)
        last = self._forward(batch.ids, batch.mask, batch.positions)
        # 2) Repeat what it left behind once for each reply.
        counts = torch.tensor([len(group) for group in self._per_prompt], device=self._model.device)
        index = torch.arange(len(counts), device=self._model.device).repeat_interleave(counts)
        if len(index) > len(counts):
            self._cache.batch_select_indices(index)
        self._logits = last[index]
        self._mask = batch.mask[index]
        self._positions = batch.positions[index, -1:]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, (R, V), in float32."""
        trunk = cast(Any, self._model.get_decoder())
        out = trunk(
            input_ids=ids,
            attention_mask=None if bool(mask.all()) else mask.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return logits_of(self._model, out.last_hidden_state[:, -1])

    def _choose(self) -> list[int]:
        assert self._logits is not None, "step() prefills first"
        uniforms = torch.tensor([row.uniform() for row in self._rows], dtype=torch.float64)
        return sample(self._logits, self._sampling, uniforms.to(self._logits.device))

    def _record(self, tokens: list[int]) -> None:
        for row, sampling, token in zip(self._rows, self._sampling, tokens, strict=True):
            if row.finish_reason is not None:  # stopped from outside during this step
                continue
            row.token_ids.append(token)
            if token == self._end_of_turn:
                row.finish_reason = "stop"
            elif len(row.token_ids) >= sampling.max_new_tokens:
                row.finish_reason = "length"
        self._tokens = torch.tensor(tokens, device=self._model.device)[:, None]

    def _drop_finished(self) -> None:
        """Take out rows that ended, here or by a stop from outside."""
        keep = [i for i, row in enumerate(self._rows) if row.finish_reason is None]
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in keep]
        self._sampling = [self._sampling[i] for i in keep]
        if keep:
            index = torch.tensor(keep, device=self._model.device)
            self._cache.batch_select_indices(index)
            self._mask, self._positions = self._mask[index], self._positions[index]
            assert self._logits is not None, "rows finish after the prefill"
            self._logits = self._logits[index]
            if hasattr(self, "_tokens"):
                self._tokens = self._tokens[index]

    def _advance(self) -> None:
        self._positions = self._positions + 1
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._logits = self._forward(self._tokens, self._mask, self._positions)


def sample(logits: Tensor, sampling: Sequence[Sampling], uniforms: Tensor) -> list[int]:
    """One token a row by inverse transform: the first whose cumulative probability exceeds the row's uniform.

    `logits` (R, V); `uniforms` (R,) in [0, 1). Temperature 0 takes the most likely token.
    """
    temperatures = torch.tensor([s.temperature for s in sampling], device=logits.device)
    probabilities = torch.softmax(logits / temperatures.clamp(min=1e-6)[:, None], dim=-1)
    limits = [s.top_p for s in sampling]
    if min(limits) < 1:
        probabilities = _nucleus(probabilities, torch.tensor(limits, device=logits.device))
    cumulative = probabilities.double().cumsum(-1)
    assert bool(cumulative[:, -1].isfinite().all()), "the model computed logits that are not finite"
    tokens = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    greedy = logits.argmax(-1)
    chosen = torch.where(temperatures > 0, tokens.clamp(max=logits.shape[-1] - 1), greedy)
    return cast(list[int], chosen.tolist())


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but the smallest set of tokens that reaches `top_p` (Holtzman et al. 2019)."""
    ordered, index = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    # A sum of rounded numbers may pass 1 early: a row that asks for everything keeps everything.
    is_cut = (before >= top_p[:, None]) & (top_p[:, None] < 1)
    ordered = ordered.masked_fill(is_cut, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, index, ordered)
