"""Attention of the tokens of a pass to what stands on the shelves: next tokens of rows, pieces of prompts.

A pass (llama.py) is a flat list of tokens. A span is a stretch of it that attends alike: prepared once, asked
in every layer. It puts the keys and values of its tokens on the shelves, then lets its queries read there.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbot.shelves import Place, Shelf


class Span(Protocol):
    """A stretch of a pass."""

    @property
    def rows(self) -> slice:
        """Where it lies in the pass."""

    @property
    def positions(self) -> Tensor:
        """Of its tokens in their texts, (N,)."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(N, H, D) and (N, H_kv, D) twice -> (N, H, D)."""

    def lengthen(self) -> None:
        """The pass is done: its tokens count."""


@dataclass(frozen=True)
class Piece:
    """Tokens of one row that are computed in one pass; `place.length` others stand before them."""

    place: Place
    token_ids: Sequence[int]


@dataclass(frozen=True)
class NextTokens:
    """One token of each of R rows of a shelf. Its F families attend side by side, W rows in each.

    Where a family has fewer rows, or is still being read, nobody looks at what comes out for the others.
    """

    shelf: Shelf
    places: list[Place]
    rows: slice
    positions: Tensor
    families: Tensor  # (R,) their indices on the shelf
    columns: Tensor  # (R,) where the tokens go
    slots: Tensor  # (R,) where the rows stand among F * W
    in_order: bool  # whether that is 0, 1, 2, ...
    width: int
    longest: int  # T, the columns that are read
    bias: Tensor | None  # (F, 1, W * H / H_kv, T): minus infinity where a row sees nothing

    @staticmethod
    def of(shelf: Shelf, places: list[Place], first: int, group: int) -> "NextTokens":
        """Of rows in the order of the shelf, from `first` in the pass. `group` queries share a key."""
        columns, count = shelf.next_columns(places), len(shelf.families)
        width = max(Counter(place.index for place in places).values())
        ranks = [column - place.family.columns for place, column in zip(places, columns, strict=True)]
        families, at, positions, slots = torch.tensor(
            [
                [place.index for place in places],
                columns,
                [place.length for place in places],
                [place.index * width + rank for place, rank in zip(places, ranks, strict=True)],
            ],
            device=shelf.keys.device,
        )
        longest, seen = max(columns) + 1, None
        if any(place.family.is_shared for place in places):
            shelf.own(places, at)
            seen = shelf.seen(places, slots, width, longest).repeat_interleave(group, 1)[:, None]
        elif min(columns) + 1 < longest or len(places) < count:
            ends = positions.new_zeros(count).index_put((families,), at)
            seen = (torch.arange(longest, device=at.device) <= ends[:, None])[:, None, None]
        bias = None
        if seen is not None:
            bias = torch.zeros(seen.shape, dtype=shelf.keys.dtype, device=at.device)
            bias.masked_fill_(~seen, float("-inf"))
        rows, in_order = slice(first, first + len(places)), len(places) == count * width
        return NextTokens(shelf, places, rows, positions, families, at, slots, in_order, width, longest, bias)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The queries that share a key, those of a family's rows among them, are a sequence before it."""
        count, (_, heads, dim) = len(self.shelf.families), keys.shape
        held_keys, held_values = self.shelf.keys[layer, :count], self.shelf.values[layer, :count]
        held_keys[self.families, :, self.columns] = keys
        held_values[self.families, :, self.columns] = values
        if not self.in_order:
            placed = queries.new_zeros(count * self.width, *queries.shape[1:])
            queries = placed.index_copy_(0, self.slots, queries)
        grouped = queries.view(count, self.width, heads, -1, dim).transpose(1, 2).flatten(2, 3)
        out: Tensor = F.scaled_dot_product_attention(
            grouped, held_keys[:, :, : self.longest], held_values[:, :, : self.longest], self.bias
        )
        out = out.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        return out if self.in_order else out[self.slots]

    def lengthen(self) -> None:
        for place in self.places:
            place.length += 1
            place.family.columns += 1


@dataclass(frozen=True)
class PieceTokens:
    """A piece of one row."""

    piece: Piece
    rows: slice
    positions: Tensor
    mask: Tensor | None  # (T, start + T): what each token sees; None where the piece begins the row

    @staticmethod
    def of(piece: Piece, first: int, device: torch.device) -> "PieceTokens":
        """Of a piece that begins at `first` in the pass."""
        start, count = piece.place.length, len(piece.token_ids)
        positions = torch.arange(start, start + count, device=device)
        mask = torch.arange(start + count, device=device) <= positions[:, None] if start else None
        return PieceTokens(piece, slice(first, first + count), positions, mask)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        place = self.piece.place
        held_keys, held_values = (held[layer, place.index] for held in (place.shelf.keys, place.shelf.values))
        end = place.length + len(queries)
        held_keys[:, place.length : end] = keys.transpose(0, 1)
        held_values[:, place.length : end] = values.transpose(0, 1)
        out = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            held_keys[None, :, :end],
            held_values[None, :, :end],
            self.mask,
            is_causal=self.mask is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    def lengthen(self) -> None:
        self.piece.place.grow(len(self.piece.token_ids))
