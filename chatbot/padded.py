"""Any causal model, decoded by transformers itself: prompts padded on the left, a cache a batch.

The K replies to a prompt share its prefill: its keys and values are computed once and repeated. A step begins
at most one batch, of jobs that wait together: the most urgent one, and others as urgent that need little
padding beside it. Those that come later form the next, and batches take turns step by step. A finished row
leaves its batch, so a batch only shrinks. Models that are like Llama have a faster way (runner.py).

What a model must have is a cache whose rows can be selected, of keys and values or of recurrent states. Each
kind is tried on a few tokens first: one that lets padding through gets prompts of equal length only, and one
whose next tokens are not those that it gives without a cache is refused.
"""

import inspect
from bisect import insort
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from chatbot.batch import TokenBatch
from chatbot.logits import logits_of
from chatbot.packing import attends_to_all
from chatbot.sampling import Job, PlainJob, Row, draw
from chatbot.shelves import SHORTEST
from data.errors import Refused, out_of_memory
from data.records import Sampling

_ALIKE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""How far logits may be from those without a cache, as a part of their spread. Rounding takes them 1e-5 and
0.02 away; a cache that is left out, about 1."""
_STEPS = 5
"""Tokens after which they are compared."""
_CAN_PAD: dict[str, bool] = {}
"""Of each configuration that was tried: whether prompts of different length may share a batch."""


class TransformersModel:
    """A merged model as transformers runs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises Refused for a model whose cache cannot be used here."""
        kind = model.config.to_json_string()
        if kind not in _CAN_PAD:
            _CAN_PAD[kind] = attends_to_all(model) or _try_to_pad(model)
        self.model = model
        self.can_pad = _CAN_PAD[kind]
        """Whether prompts of different length may share a batch."""

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int], start: int) -> Tensor:
        """log p(ids[t] | ids[:t]) at temperature 1 for t >= `start`, float32."""
        logprobs = torch.log_softmax(_uncached(self.model, ids[:-1], start - 1), dim=-1)
        return logprobs.gather(1, torch.tensor(ids[start:], device=self.model.device)[:, None])[:, 0]


def _try_to_pad(model: PreTrainedModel) -> bool:
    """Whether the logits of `model` are right where prompts are padded; raises Refused where they are not
    without padding either."""
    failure = None
    for lengths, is_padded in (((3, 12), True), ((12, 12), False)):
        try:
            if _is_right(model, lengths):
                return is_padded
        except Exception as error:  # of any type: it is made for a cache of its own
            if out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            failure = error
    reason = f" ({type(failure).__name__}: {failure})" if failure else ""
    raise Refused(
        f"With transformers' cache {model.config.model_type!r} does not say what it says without one, so its "
        f"replies would be made up{reason} - choose another model."
    ) from failure


@torch.inference_mode()
def _is_right(model: PreTrainedModel, lengths: Sequence[int]) -> bool:
    """Whether each row of a batch has about the logits that it has without a cache: two prompts of these
    `lengths`, two replies each, of which one has ended."""
    most = model.config.get_text_config().vocab_size - 1
    trials = [
        PlainJob([1 + (k * i) % most for i in range(length)], [Row(k), Row(-k)], Sampling(max_new_tokens=9))
        for k, length in zip((5, 7), lengths, strict=True)
    ]
    batch = _Batch(model, trials, end_of_turn=-1)
    batch.step()
    trials[0].rows[0].finish_reason = "cancelled"
    steps = []
    for _ in range(_STEPS):
        batch.step()
        steps.append(batch.logits)
    rows = [(trial.prompt, row) for trial in trials for row in trial.rows if row.finish_reason is None]
    return all(
        _are_alike(logits, _uncached(model, prompt + row.token_ids, -_STEPS), _ALIKE[model.dtype])
        for (prompt, row), logits in zip(rows, torch.stack(steps, dim=1), strict=True)
    )


def _are_alike(found: Tensor, wanted: Tensor, within: float) -> bool:
    """Whether logits are, (T, V), after most tokens: rounding may send one of them to other experts."""
    return float(((found - wanted).std(-1) <= within * wanted.std(-1)).float().mean()) > 0.5


def _uncached(model: PreTrainedModel, ids: Sequence[int], start: int = 0) -> Tensor:
    """Float32 logits after each of ids[start:], (T, V), by one pass."""
    inputs = torch.tensor([ids], device=model.device)
    hidden = model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state
    return logits_of(model, hidden[0, start:])


class PaddedRunner:
    """Decodes the jobs of one version. Used by one thread."""

    def __init__(self, weights: TransformersModel, end_of_turn: int) -> None:
        self._model, self._can_pad = weights.model, weights.can_pad
        self._end_of_turn = end_of_turn
        self._waiting: list[tuple[int, Job]] = []  # the most urgent first, of one priority as they came
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

    def add(self, job: Job, priority: int = 0) -> None:
        """Take a job, the more urgent the lower `priority`; its prompt and longest reply fit the context."""
        insort(self._waiting, (priority, job), key=lambda waiting: waiting[0])

    def step(self, beside: int = 0) -> None:
        """A token to every row of every batch, and of the one that is begun now, whoever waits `beside`."""
        if begun := self._next():
            self._batches.append(_Batch(self._model, begun, self._end_of_turn))
        for batch in self._batches:
            batch.step()
        self._batches = [batch for batch in self._batches if batch.width]

    def _next(self) -> list[Job]:
        """Take the next batch from those that wait: as urgent as the first, and about as long."""
        waiting = [(p, job) for p, job in self._waiting if not all(row.finish_reason for row in job.rows)]
        size_of = _doublings if self._can_pad else len
        alike = [(priority, size_of(job.prompt)) for priority, job in waiting]
        self._waiting = [pair for pair, kind in zip(waiting, alike, strict=True) if kind != alike[0]]
        return [job for (_, job), kind in zip(waiting, alike, strict=True) if kind == alike[0]]


def _doublings(prompt: Sequence[int]) -> int:
    """The size class of a prompt: within one, lengths differ at most twofold, or all are short."""
    return (max(SHORTEST, len(prompt)) - 1).bit_length()


class _Batch:
    """N prompts x K rows that were begun together."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, jobs: Sequence[Job], end_of_turn: int) -> None:
        """Prefills: one forward pass over the prompts, one row each, repeated once for each reply."""
        self._model, self._trunk = model, cast(Any, model.get_decoder())
        # What takes its cache by this name has states alone, and takes a mask for prompts alone.
        self._is_recurrent = "cache_params" in inspect.signature(self._trunk.forward).parameters
        self._rows = [row for job in jobs for row in job.rows]
        self._sampling = [job.sampling for job in jobs for _ in job.rows]
        self._end_of_turn = end_of_turn
        self._cache = cast(Any, DynamicCache(config=model.config))
        batch = TokenBatch.of([job.prompt for job in jobs], model.device, left_pad=0)
        last = self._forward(batch.ids, batch.mask, batch.positions)
        counts = torch.tensor([len(job.rows) for job in jobs], device=model.device)
        index = torch.arange(len(counts), device=model.device).repeat_interleave(counts)
        if len(index) > len(counts):
            self._cache.reorder_cache(index)
        self.logits = last[index]
        """(R, V) of the next token."""
        self._mask = batch.mask[index]
        self._positions = batch.positions[index, -1:]

    @property
    def width(self) -> int:
        """How many rows the next step decodes."""
        return len(self._rows)

    @torch.inference_mode()
    def step(self) -> None:
        """Append one token to every unfinished row."""
        self._drop_finished()
        if self._rows:
            draw(self.logits, self._rows, self._sampling, self._end_of_turn)
            self._drop_finished()
        if self._rows:
            self._advance()

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token, (R, V), in float32."""
        has_mask = not (mask.all() or (self._is_recurrent and mask.shape != ids.shape))
        out = self._trunk(
            input_ids=ids,
            attention_mask=mask.long() if has_mask else None,
            position_ids=positions,
            use_cache=True,
            **{"cache_params" if self._is_recurrent else "past_key_values": self._cache},
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
            self._cache.reorder_cache(index)
            self._mask, self._positions = self._mask[index], self._positions[index]
            self.logits = self.logits[index]

    def _advance(self) -> None:
        """Read the token that each row has got."""
        tokens = torch.tensor([row.token_ids[-1:] for row in self._rows], device=self._model.device)  # (R, 1)
        self._positions = self._positions + 1
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self.logits = self._forward(tokens, self._mask, self._positions)
