"""How long work says how far it is: it calls one of these, which may raise to end it."""

from collections.abc import Callable

Done = Callable[[float], None]
"""Hears the fraction that is done, from 0 to 1."""
Step = Callable[[int, float, dict[str, float]], None]
"""Hears the step, the fraction that is done, and the metrics of the step."""
ModelStep = Callable[[str, int, float, dict[str, float]], None]
"""Hears the model's name, its step, the fraction that is done of all models, and the metrics of the step."""
Counted = Callable[[int, int], None]
"""Hears how many are done, of how many."""


def nobody(*_: object) -> None:
    """Hears all of them and does nothing."""


def within(tell: Done, begin: float, end: float) -> Done:
    """What a part of the work calls with its own fraction, so that `tell` hears one from `begin` to `end`."""
    return lambda done: tell(begin + (end - begin) * done)
