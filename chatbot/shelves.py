"""The KV cache: the keys and values of the rows being generated.

The K replies to a prompt stand together: its keys and values are there once, and behind them the tokens that
each reply adds, as they come. Every column belongs to one of the rows or to all; a mask keeps the rows apart.
So one pass over the prompt serves the queries of all K, and a further reply costs no copy.

A shelf holds such families side by side, without gaps: what attends to them all is a slice, never a gather. A
family that outgrows its shelf moves to the next, twice as long, so at most half of what attention reads is
padding. A family that leaves is replaced by the last one of its shelf. Rows whose family has become mostly
what others said are parted: each then stands alone.

A shelf grows and shrinks with the families on it, and has room for at most twice as many as stand there. So
the rooms that requests need say how much memory they take (memory.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHORTEST = 128
"""Columns of the shortest shelf."""
_AT_FIRST = 1024
"""Columns of all families together that a shelf has room for at first."""
WORTH_SHARING = 0.6
"""Rows stay together while reading their family's columns once costs at most this share of reading each row's
own; beyond it, what is masked for a row outweighs what it shares."""
_ALL, _NOBODY = -1, -2
"""Owners of a column that are no row's number."""


def room_for(columns: int, context: int) -> int:
    """The room of the shelf for a family of so many columns, where no row is longer than `context`."""
    room = SHORTEST
    while room < columns:
        room *= 2
    return min(room, context) if columns <= context else room


@dataclass(eq=False)
class Family:
    """Rows that begin alike, and where they stand."""

    shelf: "Shelf"
    index: int
    columns: int = 0
    """Those filled."""
    rows: "list[Place]" = field(default_factory=list)
    is_shared: bool = False
    """Whether it was forked: columns have owners. Until then its only row has all of them."""
    numbered: int = 0
    """Rows there have ever been."""

    def add(self, length: int) -> "Place":
        """One more row."""
        place = Place(self, self.numbered, length)
        self.numbered += 1
        self.rows.append(place)
        return place

    def give_all(self, columns: int) -> None:
        """The first `columns` belong to every row, the others to none."""
        self.shelf.owners[self.index] = _NOBODY
        self.shelf.owners[self.index, :columns] = _ALL

    def copy_to(self, shelf: "Shelf", index: int) -> None:
        """What is in its columns, to another shelf or index; it stays where it stands."""
        count = self.columns
        shelf.keys[:, index, :, :count] = self.shelf.keys[:, self.index, :, :count]
        shelf.values[:, index, :, :count] = self.shelf.values[:, self.index, :, :count]
        shelf.owners[index] = _NOBODY
        shelf.owners[index, :count] = self.shelf.owners[self.index, :count]


@dataclass(eq=False)
class Place:
    """Where one row stands."""

    family: Family
    number: int
    length: int
    """Tokens of the row whose keys and values are there."""

    @property
    def shelf(self) -> "Shelf":
        return self.family.shelf

    @property
    def index(self) -> int:
        return self.family.index

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Append what tokens left behind, (L, H, T, D) each, to the only row of a family."""
        end = self.length + keys.shape[2]
        self.shelf.keys[:, self.index, :, self.length : end] = keys
        self.shelf.values[:, self.index, :, self.length : end] = values
        self.grow(keys.shape[2])

    def grow(self, tokens: int) -> None:
        """So many more are there, of the only row of a family."""
        assert not self.family.is_shared, "rows that share a prompt grow by decoding"
        self.length += tokens
        self.family.columns += tokens

    def copy(self, start: int = 0, end: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of its tokens from `start` to `end`, (L, H, end - start, D) each."""
        at = torch.arange(self.length, device=self.shelf.owners.device)
        if self.family.is_shared:
            owners = self.shelf.owners[self.index, : self.family.columns]
            at = ((owners == _ALL) | (owners == self.number)).nonzero()[:, 0]
        at = at[start:end]
        return (
            self.shelf.keys[:, self.index].index_select(2, at),
            self.shelf.values[:, self.index].index_select(2, at),
        )


class Shelf:
    """Families of at most `room` columns: keys and values (L, F, H, room, D), owners of columns (F, room)."""

    def __init__(self, shape: "Shape", room: int) -> None:
        self.room = room
        self.families: list[Family] = []
        self._fewest = max(1, _AT_FIRST // room)
        self.keys, self.values = (shape.zeros(self._fewest, room) for _ in range(2))
        self.owners = torch.full((self._fewest, room), _NOBODY, dtype=torch.int16, device=shape.device)

    @property
    def places(self) -> list[Place]:
        """All rows in their order."""
        return [place for family in self.families for place in family.rows]

    def take(self) -> Family:
        """A family behind the last one, still without a row."""
        if len(self.families) == (most := len(self.owners)):
            self._resize(2 * most)
        family = Family(self, len(self.families))
        self.families.append(family)
        return family

    def leave(self, family: Family) -> None:
        """Close the gap with the last family, and give memory back where most of it is unused."""
        last = self.families.pop()
        if last is not family:
            last.copy_to(self, family.index)
            self.families[family.index] = last
            last.index = family.index
        count, most = len(self.families), len(self.owners)
        if most > self._fewest and most > 2 * count > 0:
            self._resize(max(self._fewest, count + count // 4))

    def _resize(self, most: int) -> None:
        """Keys first, then values: only one of them is there twice meanwhile."""
        self.keys = _resized(self.keys, most)
        self.values = _resized(self.values, most)
        self.owners = _resized(self.owners[None], most)[0]

    def next_columns(self, places: Sequence[Place]) -> list[int]:
        """Where the next token of each row goes: behind its family's columns, one after the other."""
        used = [family.columns for family in self.families]
        columns = []
        for place in places:
            columns.append(used[place.index])
            used[place.index] += 1
        return columns

    def own(self, places: Sequence[Place], columns: Tensor) -> None:
        """From now on each of these columns, (R,), is that of its row."""
        # Nobody wrote owners down while families stood alone; their next column is theirs, too.
        for family in self.families:
            if not family.is_shared:
                family.give_all(family.columns + 1)
        shared = [(row, p.index, p.number) for row, p in enumerate(places) if p.family.is_shared]
        told = torch.tensor(shared, dtype=torch.long, device=self.owners.device)
        rows, families, numbers = told.view(-1, 3).unbind(1)
        self.owners[families, columns[rows]] = numbers.to(self.owners.dtype)

    def seen(self, places: Sequence[Place], slots: Tensor, width: int, columns: int) -> Tensor:
        """(F, width, T): which of the first T columns each slot sees; the rows stand at `slots`, (R,).

        A slot without a row sees the columns that belong to all.
        """
        numbers = self.owners.new_full((len(self.families) * width,), _ALL)
        numbers[slots] = torch.tensor([place.number for place in places]).to(numbers)
        owners = self.owners[: len(self.families), None, :columns]
        return (owners == _ALL) | (owners == numbers.view(-1, width, 1))


def _resized(old: Tensor, most: int) -> Tensor:
    """The same for so many families: (L, F, ...) -> (L, most, ...)."""
    new = old.new_empty(len(old), most, *old.shape[2:])
    held = min(most, old.shape[1])
    new[:, :held], new[:, held:] = old[:, :held], 0
    return new


@dataclass(frozen=True)
class Shape:
    """Of what one token leaves behind."""

    layers: int
    heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device

    def zeros(self, rows: int, tokens: int) -> Tensor:
        """(L, rows, H, tokens, D). Zeros: what is masked must still be finite."""
        return torch.zeros(
            self.layers, rows, self.heads, tokens, self.dim, dtype=self.dtype, device=self.device
        )


@dataclass
class Shelves:
    """All shelves of one version."""

    shape: Shape
    context: int
    """Tokens of the longest possible row."""
    _shelves: dict[tuple[bool, int], Shelf] = field(default_factory=dict)  # (is_shared, room) -> shelf

    def occupied(self) -> list[Shelf]:
        """The shelves on which something stands."""
        return [shelf for _, shelf in sorted(self._shelves.items()) if shelf.families]

    def take(self, tokens: int, *, rows: int = 1) -> Place:
        """An empty place with room for so many tokens. With several `rows`, not on a shelf of lone ones."""
        assert tokens <= self.context, f"{tokens} tokens do not fit a context of {self.context}"
        return self._shelf_for(tokens, is_shared=rows > 1).take().add(0)

    def make_room(self, places: Collection[Place]) -> None:
        """For one more token of each of these rows: what outgrows its shelf moves, what reads worse together
        is parted."""
        more: dict[Family, int] = {}
        for place in places:
            more[place.family] = more.get(place.family, 0) + 1
        for family, count in more.items():
            alone = sum(place.length for place in family.rows)
            is_alone = len(family.rows) == 1
            if family.is_shared and (is_alone or family.columns > WORTH_SHARING * alone):
                for place in list(family.rows):
                    self._part(place, place.length + 1)
            elif family.columns + count > family.shelf.room:
                self._move(family, family.columns + count)

    def fork(self, place: Place, more: int) -> list[Place]:
        """So many further rows with the same tokens, in the same family, which is forked once."""
        family = place.family
        assert not family.is_shared, "a family is forked once"
        if more:
            family.is_shared = True
            family.give_all(family.columns)
        return [family.add(place.length) for _ in range(more)]

    def leave(self, place: Place) -> None:
        """The row has ended. A shelf that nobody stands on gives its memory back."""
        family = place.family
        family.rows.remove(place)
        if not family.rows:
            self._leave(family)

    def _leave(self, family: Family) -> None:
        family.shelf.leave(family)
        if not family.shelf.families:
            self._shelves = {key: shelf for key, shelf in self._shelves.items() if shelf.families}

    def _move(self, family: Family, columns: int) -> None:
        """To a longer shelf."""
        shelf = self._shelf_for(columns, is_shared=family.is_shared)
        new = shelf.take()
        family.copy_to(shelf, new.index)
        self._leave(family)
        shelf.families[new.index] = family
        family.shelf, family.index = shelf, new.index

    def _part(self, place: Place, tokens: int) -> None:
        """Give a row a family of its own with room for so many tokens."""
        alone = self.take(tokens)
        alone.put(*place.copy())
        self.leave(place)
        place.family, place.number = alone.family, alone.number
        place.family.rows = [place]

    def _shelf_for(self, columns: int, *, is_shared: bool) -> Shelf:
        room = room_for(columns, self.context)
        key = (is_shared, room)
        if key not in self._shelves:
            self._shelves[key] = Shelf(self.shape, room)
        return self._shelves[key]
