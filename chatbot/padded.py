"""Any causal model, decoded by transformers itself: prompts padded on the left, a cache a batch.

The K replies to a prompt share its prefill: its keys and values are computed once and repeated. A step begins
at most one batch, of jobs that wait together: the most urgent one, and others as urgent that need little
padding beside it. Those that come later form the next, and batches take turns step by step. A finished row
leaves its batch, so a batch only shrinks. Models that are like Llama have a faster way (runner.py); this one
asks nothing of a model but a cache whose rows can be selected.
"""

from bisect import insort
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from chatbot.models import TokenBatch, logits_of
from chatbot.sampling import Job, draw
from chatbot.shelves import SHORTEST


class TransformersModel:
    """A merged model as transformers runs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int], start: int) -> Tensor:
        """log p(ids[t] | ids[:t]) at temperature 1 for t >= `start`, float32."""
        batch = TokenBatch.of([ids[:-1]], self.model.device)
        hidden = self.model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
        logprobs = torch.log_softmax(logits_of(self.model, hidden[0, start - 1 :]), dim=-1)
        return logprobs.gather(1, torch.tensor(ids[start:], device=self.model.device)[:, None])[:, 0]


class PaddedRunner:
    """Decodes the jobs of one version. Used by one thread."""

    def __init__(self, weights: TransformersModel, end_of_turn: int) -> None:
        self._model = weights.model
        self._end_of_turn = end_of_turn
        self._waiting: list[tuple[int, Job]] = []  # the most urgent rank first, of one rank as they came
        self._batches: list[_Batch] = []

    @property
    def width(self) -> int:
        """Rows that this runner holds."""
        waiting = sum(len(job.rows) for _, job in self._waiting)
        return waiting + self.under_way

    @property
    def under_way(self) -> int:
        """Rows that wait for their next token."""
        return sum(batch.width for batch in self._batches)

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._batches)

    def add(self, job: Job, rank: int = 0) -> None:
        """Take a job, the more urgent the lower `rank`; its prompt and longest reply fit the context."""
        insort(self._waiting, (rank, job), key=lambda waiting: waiting[0])

    def step(self, beside: int = 0) -> None:
        """A token to every row of every batch, and of the one that is begun now, whoever waits `beside`."""
        if begun := self._next():
            self._batches.append(_Batch(self._model, begun, self._end_of_turn))
        for batch in self._batches:
            batch.step()
        self._batches = [batch for batch in self._batches if batch.width]

    def _next(self) -> list[Job]:
        """Take the next batch from those that wait: as urgent as the first, and about as long."""
        waiting = [(r, job) for r, job in self._waiting if not all(row.finish_reason for row in job.rows)]
        alike = [(rank, _doublings(job.prompt)) for rank, job in waiting]
        self._waiting = [pair for pair, kind in zip(waiting, alike, strict=True) if kind != alike[0]]
        return [job for (_, job), kind in zip(waiting, alike, strict=True) if kind == alike[0]]


def _doublings(prompt: Sequence[int]) -> int:
    """The size class of a prompt: within one, lengths differ at most twofold, or all are short."""
    return (max(SHORTEST, len(prompt)) - 1).bit_length()


class _Batch:
    """N prompts x K rows that were begun together."""

    def __init__(self, model: PreTrainedModel, jobs: Sequence[Job], end_of_turn: int) -> None:
        self._model = model
        self._prompts = [job.prompt for job in jobs]
        self._counts = [len(job.rows) for job in jobs]
        self._rows = [row for job in jobs for row in job.rows]
        self._sampling = [job.sampling for job in jobs for _ in job.rows]
        self._end_of_turn = end_of_turn
        self._logits: Tensor | None = None  # (R, V) of the next token
        self._tokens: Tensor | None = None  # (R, 1) that were drawn last
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._positions = torch.empty(0)

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
            assert self._logits is not None, "the first step prefills"
            tokens = draw(self._logits, self._rows, self._sampling, self._end_of_turn)
            self._tokens = torch.tensor(tokens, device=self._model.device)[:, None]
            self._drop_finished()
        if self._rows:
            self._advance()

    def _prefill(self) -> None:
        # 1) One forward pass over the prompts, one row each.
        batch = TokenBatch.of(self._prompts, self._model.device, left_pad=0)
        self._cache = DynamicCache(config=self._model.config)
        last = self._forward(batch.ids, batch.mask, batch.positions)
        # 2) Repeat what it left behind once for each reply.
        counts = torch.tensor(self._counts, device=self._model.device)
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
            self._tokens = None if self._tokens is None else self._tokens[index]

    def _advance(self) -> None:
        assert self._tokens is not None, "tokens were drawn"
        self._positions = self._positions + 1
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._logits = self._forward(self._tokens, self._mask, self._positions)
