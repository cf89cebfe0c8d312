"""Where keys and values of rows in the making stand.

A shelf holds rows of up to so many tokens side by side, without gaps: what attends to them all is a slice,
never a gather. A row that outgrows its shelf moves to the next, twice as long, so within one shelf at most
half of what attention reads is padding. A row that leaves is replaced by the last one of its shelf.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SHORTEST = 128
"""Tokens of the shortest shelf."""
_AT_FIRST = 512
"""Tokens of all rows together that a shelf has room for at first, or one row; it doubles when it is full."""


@dataclass(eq=False)
class Place:
    """Where one row stands."""

    shelf: "Shelf"
    index: int
    length: int = 0
    """Tokens whose keys and values are there."""


class Shelf:
    """Rows of at most `room` tokens: keys and values (L, rows, H, room, D)."""

    def __init__(self, shape: "Shape", room: int) -> None:
        self.room = room
        self.places: list[Place] = []
        self._shape = shape
        self.keys, self.values = (shape.zeros(max(1, _AT_FIRST // room), room) for _ in range(2))

    def take(self) -> Place:
        """The place behind the last one."""
        if len(self.places) == self.keys.shape[1]:
            self.keys, self.values = (
                torch.cat([old, torch.zeros_like(old)], dim=1) for old in (self.keys, self.values)
            )
        place = Place(self, len(self.places))
        self.places.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Close the gap with the last row."""
        last = self.places.pop()
        if last is not place:
            self.copy(last, place)
            self.places[place.index] = last
            last.index = place.index

    @staticmethod
    def copy(source: Place, target: Place) -> None:
        """The tokens of `source` to the index of `target`."""
        for name in ("keys", "values"):
            held: Tensor = getattr(source.shelf, name)
            part = held[:, source.index, :, : source.length]
            getattr(target.shelf, name)[:, target.index, :, : source.length] = part


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
    """All shelves of one version, shortest first."""

    shape: Shape
    context: int
    """Tokens of the longest possible row."""
    _shelves: dict[int, Shelf] = field(default_factory=dict)

    def occupied(self) -> list[Shelf]:
        """The shelves on which something stands."""
        return [shelf for _, shelf in sorted(self._shelves.items()) if shelf.places]

    def take(self, tokens: int) -> Place:
        """A place with room for so many tokens."""
        return self._shelf_for(tokens).take()

    def make_room(self, place: Place, tokens: int) -> None:
        """Move a row that is about to have more tokens than its shelf is long."""
        if tokens > place.shelf.room:
            new = self.take(tokens)
            Shelf.copy(place, new)
            self.leave(place)
            new.shelf.places[new.index] = place
            place.shelf, place.index = new.shelf, new.index

    def fork(self, place: Place) -> Place:
        """A second row with the same tokens, beside the first."""
        new = place.shelf.take()
        Shelf.copy(place, new)
        new.length = place.length
        return new

    def leave(self, place: Place) -> None:
        """The row has ended. A shelf that nobody stands on gives its memory back."""
        place.shelf.leave(place)
        if not place.shelf.places:
            del self._shelves[place.shelf.room]

    def _shelf_for(self, tokens: int) -> Shelf:
        assert tokens <= self.context, f"{tokens} tokens do not fit a context of {self.context}"
        room = SHORTEST
        while room < tokens:
            room *= 2
        room = min(room, self.context)
        if room not in self._shelves:
            self._shelves[room] = Shelf(self.shape, room)
        return self._shelves[room]
