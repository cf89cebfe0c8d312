"""Shelves: families stand without gaps, move when they grow, are parted; each row keeps what is its own."""

import random

import pytest
import torch

from chatbot.shelves import SHORTEST, Place, Shape, Shelves

SHAPE = Shape(layers=2, heads=2, dim=4, dtype=torch.float32, device=torch.device("cpu"))


def shelves(context: int = 1000) -> Shelves:
    return Shelves(SHAPE, context)


def tokens(*values: float) -> torch.Tensor:
    """What so many tokens leave behind, each filled with its number: (L, H, T, D)."""
    return torch.tensor(values)[:, None].expand(SHAPE.layers, SHAPE.heads, len(values), SHAPE.dim)


def put(place: Place, *values: float) -> None:
    place.put(tokens(*values), -tokens(*values))


def decode(store: Shelves, new: dict[Place, float]) -> None:
    """Give each row one token, as a pass of a model does."""
    store.make_room(new)
    for shelf in store.occupied():
        rows = [place for place in shelf.places if place in new]
        columns = shelf.next_columns(rows)
        if rows:
            shelf.own(rows, torch.tensor(columns))
        for place, column in zip(rows, columns, strict=True):
            shelf.keys[:, place.index, :, column] = new[place]
            shelf.values[:, place.index, :, column] = -new[place]
        for place in rows:
            place.length += 1
            place.family.columns += 1


def holds(place: Place) -> list[float]:
    """The numbers of the tokens of a row, which are the same in all layers, heads, keys and values."""
    keys, values = place.copy()
    assert keys.shape[2] == place.length and bool((keys == -values).all())
    assert bool((keys == keys[:1, :1, :, :1]).all())
    return [float(value) for value in keys[0, 0, :, 0]]


def sees(place: Place) -> set[float]:
    """The numbers of what attention does not mask for a row."""
    family = place.family
    if not family.is_shared:
        return set(holds(place))
    seen = place.shelf.seen([place], torch.tensor([place.index]), 1, family.columns)[place.index, 0]
    return {float(value) for value in place.shelf.keys[0, place.index, 0, : family.columns, 0][seen]}


@pytest.mark.parametrize(("count", "room"), [(1, SHORTEST), (SHORTEST, SHORTEST), (129, 256), (600, 1000)])
def test_a_row_stands_on_the_shortest_shelf_that_holds_it(count: int, room: int) -> None:
    assert shelves().take(count).shelf.room == room


def test_a_row_longer_than_the_context_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="1001 tokens do not fit a context of 1000"):
        shelves().take(1001)


def test_a_row_that_grows_moves_with_what_it_holds() -> None:
    store = shelves()
    first, second = store.take(10), store.take(10)
    put(first, *range(SHORTEST))
    put(second, 500.0)
    decode(store, {first: 7.0})
    assert (first.shelf.room, second.shelf.room, second.index) == (256, SHORTEST, 0)
    assert holds(first) == [*range(SHORTEST), 7.0] and holds(second) == [500.0]
    decode(store, {second: 8.0})
    assert second.shelf.room == SHORTEST and holds(second) == [500.0, 8.0]


def test_the_rows_of_a_prompt_hold_it_once_and_go_their_own_ways() -> None:
    store = shelves()
    place = store.take(40, rows=4)
    put(place, *range(40))
    rows = [place, *store.fork(place, 3)]
    for step in range(3):
        decode(store, {row: 100.0 * number + step for number, row in enumerate(rows, start=1)})
    assert len({row.family for row in rows}) == 1 and place.family.columns == 40 + 4 * 3
    for number, row in enumerate(rows, start=1):
        assert holds(row) == [*range(40), 100 * number, 100 * number + 1, 100 * number + 2]
        assert sees(row) == set(holds(row))


def test_a_family_is_forked_once() -> None:
    store = shelves()
    place = store.take(40, rows=2)
    put(place, *range(40))
    assert store.fork(place, 0) == [] and not place.family.is_shared
    [other] = store.fork(place, 1)
    with pytest.raises(AssertionError, match="a family is forked once"):
        store.fork(other, 1)
    assert place.family.rows == [place, other]


def test_rows_that_read_worse_together_are_parted() -> None:
    store = shelves()
    place = store.take(4, rows=3)
    put(place, *range(4))
    rows = [place, *store.fork(place, 2)]
    for step in range(20):
        decode(store, {row: 10.0 * number + step for number, row in enumerate(rows)})
    assert len({row.family for row in rows}) == 3 and not any(row.family.is_shared for row in rows)
    assert holds(rows[2]) == [*range(4), *range(20, 40)]


def test_the_last_row_of_a_family_leaves_behind_what_the_others_said() -> None:
    store = shelves()
    place = store.take(100, rows=2)
    put(place, *range(100))
    [other] = store.fork(place, 1)
    decode(store, {place: 1000.0, other: 2000.0})
    store.leave(place)
    decode(store, {other: 2001.0})
    assert other.family.columns == other.length == 102 and holds(other) == [*range(100), 2000, 2001]


def test_a_family_longer_than_the_context_has_room() -> None:
    store = shelves(context=256)
    place = store.take(200, rows=9)
    put(place, *range(200))
    rows = [place, *store.fork(place, 8)]
    for step in range(50):
        decode(store, {row: 1000.0 * number + step for number, row in enumerate(rows)})
    assert place.family.columns == 200 + 9 * 50 and place.shelf.room == 1024
    assert all(holds(row)[-1] == 1000 * number + 49 for number, row in enumerate(rows))


def test_a_shelf_on_which_nobody_stands_is_given_back() -> None:
    store = shelves()
    places = [store.take(5), store.take(400)]
    assert [shelf.room for shelf in store.occupied()] == [SHORTEST, 512]
    for place in places:
        store.leave(place)
    assert (store.occupied(), store._shelves) == ([], {})


def test_a_shelf_is_as_long_as_what_stands_on_it_needs() -> None:
    store = shelves()
    places = [store.take(300) for _ in range(40)]
    for number, place in enumerate(places):
        put(place, float(number))
    [shelf] = store.occupied()
    assert 40 <= len(shelf.owners) <= 80
    for place in places[:37]:
        store.leave(place)
    assert len(shelf.owners) <= 6 and [holds(place) for place in places[37:]] == [[37], [38], [39]]


@pytest.mark.parametrize("seed", range(10))
def test_whoever_comes_and_goes_each_row_keeps_its_own_and_no_gap_stays(seed: int) -> None:
    dice, store, held = random.Random(seed), shelves(), dict[Place, list[float]]()
    for _ in range(80):
        act = dice.choice(["take", "fork", "fork", "decode", "decode", "leave"])
        place = dice.choice(list(held)) if held else None
        if act == "take" or place is None:
            values = [float(dice.randint(0, 9999)) for _ in range(dice.choice([1, 30, 127, 400]))]
            held[new := store.take(len(values), rows=dice.choice([1, 4]))] = values
            put(new, *values)
        elif act == "fork" and not place.family.is_shared:
            held |= {row: list(held[place]) for row in store.fork(place, dice.choice([0, 1, 3]))}
        elif act == "decode":
            some = {row: float(dice.randint(0, 9999)) for row in held if dice.random() < 0.8}
            decode(store, some)
            for row, value in some.items():
                held[row].append(value)
        elif act == "leave":
            store.leave(place)
            del held[place]
        assert all(holds(row) == values and sees(row) == set(values) for row, values in held.items())
        for shelf in store.occupied():
            assert [family.index for family in shelf.families] == list(range(len(shelf.families)))
            assert all(row.shelf is shelf for row in shelf.places)
            assert len(shelf.owners) <= max(1024 // shelf.room, 2 * len(shelf.families))
