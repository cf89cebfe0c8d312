"""Sequences that begin alike, read once where they do: the K replies to a prompt share its tokens.

What a layer makes of a token depends on it and on those before it. So equal tokens after equal prefixes are
computed once, and a batch becomes a single row of its distinct tokens, without padding. All that goes token
by token, which is nearly all arithmetic, sees this row; attention alone unpacks the sequences, and packs its
result again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chatbot.batch import TokenBatch

PACKED = "night_school_packed"
"""What our attention is called in transformers."""
_TYPES = ("llama", "qwen2", "qwen3", "mistral")
_WORTH_IT = 0.9
"""A batch is packed where no more of its cells than this are left."""
_LONGEST_EAGER = 384
"""Tokens up to which a CPU is faster with eager attention, forward and backward: 1.4x at 155 tokens, 1.2x at
256. Past some 400 it is not, and needs memory that grows with the square of the length."""


def attends_to_all(model: PreTrainedModel) -> bool:
    """Whether every token attends to all before it, and extra arguments of a pass reach the attention."""
    config = model.config.get_text_config()
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.model_type in _TYPES and not windows and not slides


@dataclass(frozen=True)
class Rectangle:
    """A batch as it is, for models of any kind."""

    batch: TokenBatch

    @property
    def tokens(self) -> int:
        """How many pass through a layer."""
        return self.batch.ids.numel()

    @property
    def is_eager(self) -> bool:
        """Whether attention is computed in plain steps."""
        return self.batch.ids.device.type == "cpu" and self.batch.ids.shape[1] <= _LONGEST_EAGER

    @property
    def attention(self) -> str:
        """Which of transformers' attentions to use."""
        return "eager" if self.is_eager else "sdpa"

    @property
    def inputs(self) -> dict[str, Any]:
        """What the decoder is given."""
        mask = self.batch.mask.long()
        return {"input_ids": self.batch.ids, "attention_mask": mask, "position_ids": self.batch.positions}

    def pack(self, states: Tensor) -> Tensor:
        """(B, T, D) as layers take them."""
        return states

    def unpack(self, states: Tensor) -> Tensor:
        """(B, T, D) of what a layer gives."""
        return states


@dataclass(frozen=True)
class Packed(Rectangle):
    """A batch of B x T cells as a row of its U distinct tokens: equal ones after equal prefixes are one."""

    first: Tensor
    """(U,): the cell where each of them stands first."""
    place: Tensor
    """(B * T,): which of them stands in each cell; any in padding."""
    again: Tensor
    """(N,): the cells of tokens that stand in an earlier one too."""

    @property
    def tokens(self) -> int:
        return len(self.first)

    @property
    def attention(self) -> str:
        return PACKED

    @property
    def inputs(self) -> dict[str, Any]:
        """What the decoder is given, and hands on to `attend`."""
        ids, positions = (x.flatten()[self.first][None] for x in (self.batch.ids, self.batch.positions))
        return {"input_ids": ids, "position_ids": positions, "packed": self}

    def pack(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (1, U, D)."""
        row: Tensor = cast(Any, _Select).apply(states.flatten(0, 1), self.first, self._spread)
        return row[None]

    def unpack(self, states: Tensor) -> Tensor:
        """(1, U, D) -> (B, T, D)."""
        cells: Tensor = cast(Any, _Select).apply(states[0], self.place, self._sum_up)
        return cells.view(*self.batch.ids.shape, -1)

    def _spread(self, row: Tensor) -> Tensor:
        """(U, D) -> (B * T, D): each to the cell where it stands first, 0 to the others."""
        return row.new_zeros(len(self.place), row.shape[1]).index_copy_(0, self.first, row)

    def _sum_up(self, cells: Tensor) -> Tensor:
        """(B * T, D) -> (U, D): the sum over the cells of each; padding is left out."""
        total = cells.index_select(0, self.first)
        return total.index_add_(0, self.place[self.again], cells.index_select(0, self.again))

    @cached_property
    def allowed(self) -> Tensor:
        """(B, 1, T, T): the real tokens that each attends to, those before it and itself."""
        width = self.batch.ids.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.batch.ids.device).tril()
        return causal & self.batch.mask[:, None, None, :]

    @cached_property
    def bias(self) -> Tensor:
        """The same, to be added to scores."""
        lowest = torch.finfo(torch.bfloat16).min  # finite, for padding on the left attends to nothing
        return torch.where(self.allowed, 0.0, lowest)


def lay_out(batch: TokenBatch, may_pack: bool) -> Rectangle:
    """`batch`, packed where that is allowed and worth it."""
    if not may_pack:
        return Rectangle(batch)
    places: dict[tuple[int, int], int] = {}  # by the place before and the token
    first: list[int] = []
    again: list[int] = []
    place = [0] * batch.ids.numel()
    for row, (ids, mask) in enumerate(zip(batch.ids.tolist(), batch.mask.tolist(), strict=True)):
        at = -1
        for cell, (token, is_real) in enumerate(zip(ids, mask, strict=True), row * len(ids)):
            if is_real:
                at = places.setdefault((at, token), len(first))
                (first if at == len(first) else again).append(cell)
                place[cell] = at
    if len(first) > _WORTH_IT * len(place):
        return Rectangle(batch)
    device = batch.ids.device
    return Packed(batch, *(torch.tensor(x, dtype=torch.long, device=device) for x in (first, place, again)))


class _Select(torch.autograd.Function):
    """`rows.index_select(0, index)`, whose gradient `back` computes: its own adds up row by row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.back(grads[0]), None, None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each sequence of a packed batch: (1, H, U, D) -> (1, U, H, D).

    The signature is that of transformers' attention functions; keys and values have G heads, G a part of H.
    """
    q, k, v = (_in_sequences(heads, packed) for heads in (query, key, value))
    if packed.is_eager:
        with torch.autocast(q.device.type, enabled=False):  # it copies scores to float32 and back
            said = _eager(q * scaling, k, v, packed.bias)
    else:
        k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for heads in (k, v))
        said = F.scaled_dot_product_attention(q, k, v, attn_mask=packed.allowed, scale=scaling)
    return packed.pack(said.transpose(1, 2).flatten(2)).unflatten(2, said.shape[1::2]), None


def _in_sequences(heads: Tensor, packed: Packed) -> Tensor:
    """(1, H, U, D) -> (B, H, T, D)."""
    cells: Tensor = packed.unpack(heads.transpose(1, 2).flatten(2)).unflatten(2, heads.shape[1::2])
    return cells.transpose(1, 2)


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v: (B, H, T, D). The H / G queries that share a key are one matrix."""
    batch, heads, length, _ = q.shape
    q = q.reshape(batch, k.shape[1], -1, q.shape[-1])
    scores = (q @ k.transpose(2, 3)).unflatten(2, (-1, length)) + bias[:, :, None].to(q.dtype)
    said = torch.softmax(scores, dim=-1).flatten(2, 3) @ v
    return said.reshape(batch, heads, length, -1)


def _no_mask(*_: Any, **__: Any) -> None:
    """`attend` makes its own."""


ALL_ATTENTION_FUNCTIONS.register(PACKED, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, _no_mask)
