"""Spans of a pass read what a float64 attention over each row's own tokens reads, whichever way they read."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from chatbot import attention
from chatbot.attention import FEW, NextTokens, Piece, PieceTokens
from chatbot.shelves import Place, Shape, Shelves

HEADS, GROUP, DIM, CONTEXT = 2, 3, 16, 2048
CPU = torch.device("cpu")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.03}

Row = tuple[Tensor, Tensor]
"""Keys and values of all its tokens, (T, H_kv, D)."""


def shelves(dtype: torch.dtype) -> Shelves:
    return Shelves(Shape(layers=1, heads=HEADS, dim=DIM, dtype=dtype, device=CPU), CONTEXT)


def drawn(count: int, heads: int, dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    return torch.randn(count, heads, DIM, generator=draw).to(dtype)


def expected(queries: Tensor, row: Row) -> Tensor:
    """What the last N tokens of a row read, (N, H, D), written out in float64."""
    keys, values = (part.double().repeat_interleave(GROUP, 1) for part in row)
    scores = torch.einsum("nhd,thd->hnt", queries.double(), keys) / DIM**0.5
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(keys) - len(queries))
    return torch.einsum("hnt,thd->nhd", scores.masked_fill(later, -torch.inf).softmax(-1), values)


def read_piece(place: Place, count: int, row: Row, draw: torch.Generator) -> tuple[Tensor, Tensor, Row]:
    """What a further piece of so many tokens reads, what it should, and the row with it."""
    dtype = place.shelf.keys.dtype
    queries, keys, values = (drawn(count, heads, dtype, draw) for heads in (HEADS * GROUP, HEADS, HEADS))
    row = (torch.cat([row[0], keys]), torch.cat([row[1], values]))
    span = PieceTokens.of(Piece(place, [0] * count), 0, CPU)
    found = span.attend(0, queries, keys, values)
    span.lengthen()
    return found, expected(queries, row), row


def no_row(dtype: torch.dtype) -> Row:
    return torch.zeros(0, HEADS, DIM, dtype=dtype), torch.zeros(0, HEADS, DIM, dtype=dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    "ends",
    [(1, 64, 127, 128, 129, 257, 300), (512,), (700, 701, 1100), (64, 128, 192, 1000), (130, 2048)],
)
def test_a_piece_reads_what_stands_before_each_of_its_tokens(
    dtype: torch.dtype, ends: tuple[int, ...]
) -> None:
    draw, store = torch.Generator().manual_seed(0), shelves(dtype)
    stale = store.take(ends[-1])  # what stood there before must not be seen
    read_piece(stale, ends[-1], no_row(dtype), draw)
    store.leave(stale)
    place, row = store.take(ends[-1]), no_row(dtype)
    for start, end in pairwise((0, *ends)):
        found, wanted, row = read_piece(place, end - start, row, draw)
        assert found.shape == (end - start, HEADS * GROUP, DIM)
        assert (found - wanted).abs().max() < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("length", [40, FEW - 3, 1500])
def test_next_tokens_read_their_own_row_alone(dtype: torch.dtype, length: int) -> None:
    """Three replies to one prompt, and a row by itself on a shelf of its own; seven tokens each."""
    draw, store = torch.Generator().manual_seed(0), shelves(dtype)
    rows: dict[Place, Row] = {}
    for count, replies in ((length, 3), (length // 2, 1), (length - 10, 1)):
        place = store.take(count + 7, rows=replies)
        _, _, row = read_piece(place, count, no_row(dtype), draw)
        rows |= dict.fromkeys([place, *store.fork(place, replies - 1)], row)
    for _ in range(7):
        store.make_room(rows)
        for shelf in store.occupied():
            places = shelf.places
            queries, keys, values = (
                drawn(len(places), heads, dtype, draw) for heads in (HEADS * GROUP, HEADS, HEADS)
            )
            for at, place in enumerate(places):
                before = rows[place]
                rows[place] = (
                    torch.cat([before[0], keys[at : at + 1]]),
                    torch.cat([before[1], values[at : at + 1]]),
                )
            span = NextTokens.of(shelf, places, 0, GROUP)
            found = span.attend(0, queries, keys, values)
            span.lengthen()
            for at, place in enumerate(places):
                wanted = expected(queries[at : at + 1], rows[place])[0]
                assert (found[at] - wanted).abs().max() < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE)
def test_cuda_has_fused_attention_for_every_read(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask it has none for groups of queries, and copies masks whose rows are not aligned."""
    fused = attention.F.scaled_dot_product_attention
    masked = 0

    def noted(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, **more: bool) -> Tensor:
        nonlocal masked
        assert queries.shape[:2] == keys.shape[:2] == values.shape[:2] and not more.get("enable_gqa")
        if mask is not None:
            masked += 1
            assert mask.dtype == keys.dtype and mask.stride(-1) == 1
            assert all(stride % 16 == 0 for stride in mask.stride()[:-1])
        out: Tensor = fused(queries, keys, values, mask, **more)
        return out

    monkeypatch.setattr(attention, "has_bfloat16", lambda tensor: False)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", noted)
    draw, store = torch.Generator().manual_seed(0), shelves(dtype)
    place = store.take(150, rows=3)
    _, _, row = read_piece(place, 50, no_row(dtype), draw)
    found, wanted, row = read_piece(place, 51, row, draw)
    assert (found - wanted).abs().max() < CLOSE[dtype]
    places = [place, *store.fork(place, 2)]
    span = NextTokens.of(place.shelf, places, 0, GROUP)
    span.attend(0, *(drawn(3, heads, dtype, draw) for heads in (HEADS * GROUP, HEADS, HEADS)))
    assert masked == 2


def test_what_grows_token_by_token_asks_for_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that oneDNN has not seen costs it a millisecond, in every step."""
    monkeypatch.setattr(attention, "has_bfloat16", lambda tensor: True)
    sizes: set[int] = set()
    by_products = attention._by_products

    def noted(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        sizes.add(keys.shape[2])
        return by_products(queries, keys, values, bias)

    monkeypatch.setattr(attention, "_by_products", noted)
    store, draw = shelves(torch.float32), torch.Generator().manual_seed(0)
    places = [store.take(500) for _ in range(3)]
    for place in places:
        read_piece(place, 400, no_row(torch.float32), draw)
    for _ in range(100):
        span = NextTokens.of(places[0].shelf, places, 0, GROUP)
        span.attend(0, *(drawn(3, heads, torch.float32, draw) for heads in (HEADS * GROUP, HEADS, HEADS)))
        span.lengthen()
    assert sizes == {places[0].shelf.room}
