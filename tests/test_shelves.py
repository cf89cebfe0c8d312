"""Shelves: rows stand without gaps, move when they grow, fork, and never change what they hold."""

import random

import pytest
import torch

from chatbot.shelves import SHORTEST, Place, Shape, Shelves

SHAPE = Shape(layers=2, heads=2, dim=4, dtype=torch.float32, device=torch.device("cpu"))


def shelves(context: int = 1000) -> Shelves:
    return Shelves(SHAPE, context)


def write(place: Place, value: float, tokens: int) -> None:
    """Fill the place with a number of its own."""
    for held in (place.shelf.keys, place.shelf.values):
        held[:, place.index, :, :tokens] = value
    place.length = tokens


def reads(place: Place, value: float) -> bool:
    parts = [held[:, place.index, :, : place.length] for held in (place.shelf.keys, place.shelf.values)]
    return all(bool((part == value).all()) for part in parts)


@pytest.mark.parametrize(("tokens", "room"), [(1, SHORTEST), (SHORTEST, SHORTEST), (129, 256), (600, 1000)])
def test_a_row_stands_on_the_shortest_shelf_that_holds_it(tokens: int, room: int) -> None:
    assert shelves().take(tokens).shelf.room == room


def test_a_row_longer_than_the_context_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="1001 tokens do not fit a context of 1000"):
        shelves().take(1001)


def test_a_row_that_grows_moves_with_what_it_holds() -> None:
    store = shelves()
    first, second = store.take(10), store.take(10)
    write(first, 1.0, SHORTEST)
    write(second, 2.0, 30)
    store.make_room(first, SHORTEST + 1)
    assert (first.shelf.room, second.shelf.room, second.index) == (256, SHORTEST, 0)
    assert reads(first, 1.0) and reads(second, 2.0)
    store.make_room(second, SHORTEST)
    assert second.shelf.room == SHORTEST


def test_a_fork_holds_the_same_and_goes_its_own_way() -> None:
    store = shelves()
    place = store.take(5)
    write(place, 3.0, 5)
    forks = [store.fork(place) for _ in range(12)]
    assert all(reads(fork, 3.0) and fork.length == 5 for fork in forks)
    write(forks[4], 9.0, 5)
    assert reads(place, 3.0) and reads(forks[3], 3.0) and reads(forks[5], 3.0)


def test_a_shelf_on_which_nobody_stands_is_given_back() -> None:
    store = shelves()
    places = [store.take(5), store.take(400)]
    assert [shelf.room for shelf in store.occupied()] == [SHORTEST, 512]
    for place in places:
        store.leave(place)
    assert (store.occupied(), store._shelves) == ([], {})


@pytest.mark.parametrize("seed", range(20))
def test_whoever_comes_and_goes_each_row_keeps_its_own_and_no_gap_stays(seed: int) -> None:
    dice, store, held = random.Random(seed), shelves(), dict[Place, float]()
    for step in range(200):
        act = dice.choice(["take", "take", "fork", "grow", "leave"])
        place = dice.choice(list(held)) if held else None
        if act == "take" or place is None:
            tokens = dice.randint(1, 1000)
            held[new := store.take(tokens)] = float(step)
            write(new, float(step), tokens)
        elif act == "fork":
            held[store.fork(place)] = held[place]
        elif act == "grow":
            store.make_room(place, dice.randint(place.length, 1000))
        else:
            store.leave(place)
            del held[place]
        assert all(reads(place, value) for place, value in held.items())
        for shelf in store.occupied():
            assert [place.index for place in shelf.places] == list(range(len(shelf.places)))
            assert all(place.shelf is shelf for place in shelf.places)
