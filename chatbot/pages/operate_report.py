"""Reading a report that may be older or newer than this page: what is missing or odd is None, never an error.

A version keeps its report as the night wrote it, and nights learn to write more. So nothing here trusts a
key, a type or a number; whoever shows a figure leaves out what is None.
"""

import math
from collections.abc import Sequence
from typing import Any

MISSING = "\N{EN DASH}"
"""What stands in a table where a figure is not there."""


def part(report: object, *keys: str) -> dict[str, Any]:
    """The object under these keys, one inside the other; empty where there is none."""
    for key in keys:
        report = report.get(key) if isinstance(report, dict) else None
    return report if isinstance(report, dict) else {}


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: object) -> tuple[float, float] | None:
    """Two finite numbers in order, or None."""
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return (low, high) if low is not None and high is not None and low <= high else None


def sentences(value: object) -> list[str]:
    """What was written as one sentence or as a list of them; empty ones are left out."""
    written = value if isinstance(value, list) else [value]
    return [text for text in written if isinstance(text, str) and text.strip()]


def rows(value: object) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def percent(value: float) -> str:
    """A share as people read it: 67 %."""
    return f"{100 * value:.0f} %"


def signed(value: float) -> str:
    """A score, whose sign matters: +0.42, with a true minus."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
