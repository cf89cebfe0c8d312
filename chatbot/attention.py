"""Attention from the tokens of a pass to the keys and values on the shelves: next tokens, pieces of prompts.

A pass (llama.py) is a flat list of tokens. A span is a stretch of it that attends alike: prepared once, asked
in every layer. It puts the keys and values of its tokens on the shelves, then lets its queries read there.

Queries read by PyTorch's fused attention, except in bfloat16 on a CPU, where its inner products are slow:
there, long pieces and the next tokens of many rows take two plain matrix products and a softmax, in few
different sizes (kernels.py says what a new size costs). Such a product copies what is not contiguous, so next
tokens then read the whole width of their shelf.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbot.kernels import has_bfloat16
from chatbot.shelves import Place, Shelf

COLUMNS = 128
"""Plain products read a multiple of so many columns; a piece that ends before is read by fused attention."""
FEW = 1024
"""Up to so many columns of all families fused attention is the faster way for next tokens; measured, see
benchmarks/RESULTS.md."""
_TILES = (64, 128)
"""Queries of a piece whose scores are computed together: what lies after the last of them is skipped."""


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

    Where a family has fewer rows, or its prompt is still being read, what unused slots give is ignored.
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
    by_products: bool  # or by fused attention

    @staticmethod
    def of(shelf: Shelf, places: list[Place], first: int, group: int) -> "NextTokens":
        """Of rows in the order of the shelf, from `first` in the pass. `group` queries share a key.

        Where rows share a family, the shelf learns whose the tokens' columns are.
        """
        # 1) Where the tokens go, and in which slots their rows stand.
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
        if is_shared := any(place.family.is_shared for place in places):
            shelf.own(places, at)

        # 2) How far they read, and by which kernel.
        longest = max(columns) + 1
        if by_products := count * longest > FEW and has_bfloat16(shelf.keys):
            longest = shelf.room

        # 3) What each slot sees: its row's own and what belongs to all; all up to its token; or all there is.
        seen = None
        if is_shared:
            seen = shelf.seen(places, slots, width, longest).repeat_interleave(group, 1)[:, None]
        elif min(columns) + 1 < longest or len(places) < count:
            ends = positions.new_zeros(count).index_put((families,), at)
            seen = (torch.arange(longest, device=at.device) <= ends[:, None])[:, None, None]
        return NextTokens(
            shelf=shelf,
            places=places,
            rows=slice(first, first + len(places)),
            positions=positions,
            families=families,
            columns=at,
            slots=slots,
            in_order=len(places) == count * width,
            width=width,
            longest=longest,
            bias=None if seen is None else _bias_of(seen, shelf.keys),
            by_products=by_products,
        )

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """All queries of a family that share a key head form one sequence that attends to it."""
        count, (_, heads, dim) = len(self.shelf.families), keys.shape
        held_keys, held_values = self.shelf.keys[layer, :count], self.shelf.values[layer, :count]
        held_keys[self.families, :, self.columns] = keys
        held_values[self.families, :, self.columns] = values
        if not self.in_order:
            placed = queries.new_zeros(count * self.width, *queries.shape[1:])
            queries = placed.index_copy_(0, self.slots, queries)
        grouped = queries.view(count, self.width, heads, -1, dim).transpose(1, 2).flatten(2, 3)
        held_keys, held_values = held_keys[:, :, : self.longest], held_values[:, :, : self.longest]
        attend = _by_products if self.by_products else F.scaled_dot_product_attention
        out: Tensor = attend(grouped, held_keys, held_values, self.bias)
        out = out.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        return out if self.in_order else out[self.slots]

    def lengthen(self) -> None:
        for place in self.places:
            place.length += 1
            place.family.columns += 1


@dataclass(frozen=True)
class _Tile:
    """Queries of a piece, from `first` to `last`, of which all see what stands before `start` in the row."""

    first: int
    last: int
    start: int
    bias: Tensor  # (Q, 1, C): of the columns from `start` on; Q may be more than there are queries

    @property
    def columns(self) -> int:
        return self.start + self.bias.shape[-1]

    @staticmethod
    def parts_of(count: int, start: int, held: Tensor, room: int) -> "list[_Tile]":
        """Of a piece of so many tokens that begins at `start`; `held` has the type of the keys."""
        tiles = []
        for first in range(0, count, _TILES[-1]):
            last, begins = min(first + _TILES[-1], count), start + first
            size = next(size for size in _TILES if size >= last - first)
            columns = _in_steps(start + last, room) - begins
            bias = held.new_full((size, columns), float("-inf")).triu(1)[:, None]
            tiles.append(_Tile(first, last, begins, bias))
        return tiles


@dataclass(frozen=True)
class PieceTokens:
    """A piece of one row."""

    piece: Piece
    rows: slice
    positions: Tensor
    bias: Tensor | None  # (T, start + T): minus infinity where a token sees nothing; None where it is causal
    tiles: list[_Tile]  # by which it is read instead; none where fused attention does it

    @staticmethod
    def of(piece: Piece, first: int, device: torch.device) -> "PieceTokens":
        """Of a piece that begins at `first` in the pass."""
        start, count = piece.place.length, len(piece.token_ids)
        positions, keys = torch.arange(start, start + count, device=device), piece.place.shelf.keys
        tiles, bias = [], None
        if start + count >= COLUMNS and has_bfloat16(keys):
            tiles = _Tile.parts_of(count, start, keys, piece.place.shelf.room)
        elif start:
            bias = _bias_of(torch.arange(start + count, device=device) <= positions[:, None], keys)
        return PieceTokens(piece, slice(first, first + count), positions, bias, tiles)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        place = self.piece.place
        held_keys, held_values = (held[layer, place.index] for held in (place.shelf.keys, place.shelf.values))
        end = place.length + len(queries)
        held_keys[:, place.length : end] = keys.transpose(0, 1)
        held_values[:, place.length : end] = values.transpose(0, 1)
        if self.tiles:
            return self._attend_in_tiles(queries, held_keys, held_values)
        # A key that queries share is there for each of them, without a copy: CUDA has no fused attention for
        # `enable_gqa` with a mask, and would write out all scores in float32.
        grouped = queries.unflatten(1, (len(held_keys), -1)).permute(1, 2, 0, 3)
        out: Tensor = F.scaled_dot_product_attention(
            grouped,
            held_keys[:, None, :end].expand(-1, grouped.shape[1], -1, -1),
            held_values[:, None, :end].expand(-1, grouped.shape[1], -1, -1),
            self.bias,
            is_causal=self.bias is None,
        )
        return out.permute(2, 0, 1, 3).flatten(1, 2)

    def _attend_in_tiles(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Keys and values are (H_kv, room, D); the queries that share a key are a sequence before it."""
        grouped = (queries * queries.shape[-1] ** -0.5).unflatten(1, (len(keys), -1)).transpose(0, 1)
        out = []
        for tile in self.tiles:
            size, missing = len(tile.bias), len(tile.bias) - (tile.last - tile.first)
            asked = F.pad(grouped[:, tile.first : tile.last], (0, 0, 0, 0, 0, missing)).flatten(1, 2)
            scores = torch.bmm(asked, keys[:, : tile.columns].transpose(1, 2)).unflatten(1, (size, -1))
            scores[..., tile.start :] += tile.bias
            read = torch.bmm(scores.softmax(-1).flatten(1, 2), values[:, : tile.columns])
            out.append(read.unflatten(1, (size, -1))[:, : size - missing])
        return torch.cat(out, 1).transpose(0, 1).flatten(1, 2)

    def lengthen(self) -> None:
        self.piece.place.grow(len(self.piece.token_ids))


def _by_products(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """What scaled_dot_product_attention computes, (F, H_kv, Q, D) of (F, H_kv, T, D)."""
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(2, 3))
    if bias is not None:
        scores += bias
    return torch.matmul(scores.softmax(-1), values)


def _bias_of(seen: Tensor, held: Tensor) -> Tensor:
    """0 where something is seen and minus infinity elsewhere, of the type of the keys, (..., T).

    Its rows begin at multiples of 16: fused attention on CUDA would otherwise copy it so, in every layer.
    """
    columns = seen.shape[-1]
    bias = held.new_zeros(*seen.shape[:-1], -(-columns // 16) * 16)[..., :columns]
    return bias.masked_fill_(~seen, float("-inf"))


def _in_steps(columns: int, room: int) -> int:
    """The next multiple of COLUMNS, or all there are."""
    return min(-(-columns // COLUMNS) * COLUMNS, room)
