"""Small charts as HTML and SVG, drawn on the server: no script, both themes, readable on a phone.

`chart` draws series of points over two axes, `ranges` shares with their intervals on one line each. Every
word that comes in is plain text and is escaped here. Colours are classes of operate.css.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from chatbot.pages.operate_report import percent

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 40
"""Margins of the plot inside the picture, in its own units: about pixels."""


@dataclass(frozen=True)
class Point:
    """One dot, and what it says when pointed at."""

    x: float
    y: float
    tip: str
    radius: float = 2.5


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined in their order; `colour` counts from 0."""

    label: str
    points: Sequence[Point]
    colour: int = 0


@dataclass(frozen=True)
class Chart:
    """Two axes and what is drawn between them. Without bounds an axis fits its points."""

    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    mark: tuple[float, float, str] | None = None
    """A ring around one point, with its name."""
    limit: tuple[float, str] | None = None
    """A dashed line across, with its name; it stretches no axis to more than twice the points."""
    is_share: bool = False
    """Both axes are shares; a dashed diagonal shows where they are equal."""


@dataclass(frozen=True)
class Range:
    """One share on a line from 0 to 1, with its interval where it has one."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    note: str = ""
    is_baseline: bool = False


@dataclass(frozen=True)
class _Axis:
    """A linear scale: values from `low` to `high` lie at `start` to `end` in the picture."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int) -> list[float]:
        return ticks(self.low, self.high, about)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`, `about` so many: steps of 1, 2 or 5 and zeros."""
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * nice for nice in (1, 2, 5, 10) if size * nice >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


def chart(drawn: Chart) -> str:
    """The chart with its title and legend; nothing where there is no point."""
    series = [one for one in drawn.series if one.points]
    if not series:
        return ""
    points = [point for one in series for point in one.points]
    across = _axis([p.x for p in points], _LEFT, WIDTH - _RIGHT, 0.0)
    values = [p.y for p in points]
    limit = drawn.limit if drawn.limit and drawn.limit[0] <= 2 * max(values) else None
    up = _axis(values + ([limit[0]] if limit else []), HEIGHT - _BOTTOM, _TOP, 0.06)
    if drawn.is_share:
        across = _Axis(min(0.5, min(p.x for p in points)), 1.0, _LEFT, WIDTH - _RIGHT)
        up = _Axis(0.0, 1.0, HEIGHT - _BOTTOM, _TOP)
    inside = [
        _grid(across, up),
        *([_line(across.low, across.low, 1.0, 1.0, across, up)] if drawn.is_share else []),
        *([_limit(limit, across, up)] if limit else []),
        *(_series(one, across, up) for one in series),
        *([_mark(drawn.mark, across, up)] if drawn.mark else []),
        f"<text class='ns-axis' x='{(_LEFT + WIDTH - _RIGHT) / 2}' y='{HEIGHT - 5}' text-anchor='middle'>"
        f"{escape(drawn.x_title)}</text>",
    ]
    spoken = "; ".join(f"{one.label}: {one.points[0].y:.3g} → {one.points[-1].y:.3g}" for one in series)
    named = [f"<span class='ns-c{one.colour}'>{escape(one.label)}</span>" for one in series]
    legend = f"<span class='ns-legend'>{''.join(named)}</span>" if len(named) > 1 else ""
    return (
        f"<figure class='ns-chart'><figcaption><strong>{escape(drawn.title)}</strong>"
        f"<small>{escape(drawn.y_title)}</small>{legend}</figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(f'{drawn.title}. {spoken}')}'>"
        f"{''.join(inside)}</svg></figure>"
    )


def _axis(values: Sequence[float], start: float, end: float, padding: float) -> _Axis:
    low, high = min(values), max(values)
    room = (high - low) * padding if high > low else 0.5
    return _Axis(low - room, high + room, start, end)


def _grid(across: _Axis, up: _Axis) -> str:
    lines = [
        f"<line class='ns-grid' x1='{_LEFT}' x2='{WIDTH - _RIGHT}' y1='{up.at(y)}' y2='{up.at(y)}'/>"
        f"<text class='ns-tick' x='{_LEFT - 6}' y='{up.at(y) + 4}' text-anchor='end'>{_short(y)}</text>"
        for y in up.ticks(5)
    ]
    lines += [
        f"<line class='ns-grid' x1='{across.at(x)}' x2='{across.at(x)}' y1='{_TOP}' y2='{HEIGHT - _BOTTOM}'/>"
        f"<text class='ns-tick' x='{across.at(x)}' y='{HEIGHT - _BOTTOM + 15}' text-anchor='middle'>"
        f"{_short(x)}</text>"
        for x in across.ticks(6)
    ]
    return "".join(lines)


def _short(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _line(x1: float, y1: float, x2: float, y2: float, across: _Axis, up: _Axis) -> str:
    ends = f"x1='{across.at(x1)}' y1='{up.at(y1)}' x2='{across.at(x2)}' y2='{up.at(y2)}'"
    return f"<line class='ns-dashed' {ends}/>"


def _limit(limit: tuple[float, str], across: _Axis, up: _Axis) -> str:
    y, name = limit
    line = _line(across.low, y, across.high, y, across, up)
    return f"{line}<text class='ns-tick' x='{_LEFT + 4}' y='{up.at(y) + 13}'>{escape(name)}</text>"


def _series(one: Series, across: _Axis, up: _Axis) -> str:
    path = " ".join(f"{across.at(p.x)},{up.at(p.y)}" for p in one.points)
    dots = "".join(
        f"<circle cx='{across.at(p.x)}' cy='{up.at(p.y)}' r='{p.radius:.1f}'>"
        f"<title>{escape(p.tip)}</title></circle>"
        for p in one.points
    )
    return f"<g class='ns-c{one.colour}'><polyline points='{path}'/>{dots}</g>"


def _mark(mark: tuple[float, float, str], across: _Axis, up: _Axis) -> str:
    """A ring, and its name on the side where there is room."""
    x, y = across.at(mark[0]), up.at(mark[1])
    is_left = x > (_LEFT + WIDTH - _RIGHT) / 2
    at_x, anchor = (x - 10, "end") if is_left else (x + 10, "start")
    at_y = y + 20 if y < _TOP + 20 else y - 9
    return (
        f"<circle class='ns-ring' cx='{x}' cy='{y}' r='6.5'/>"
        f"<text class='ns-marked' x='{at_x:.1f}' y='{at_y:.1f}' text-anchor='{anchor}'>"
        f"{escape(mark[2])}</text>"
    )


def ranges(shown: Sequence[Range]) -> str:
    """Shares below each other on lines from 0 to 100 %, with a stroke at one half; nothing for no rows."""
    if not shown:
        return ""
    return f"<ul class='ns-ranges'>{''.join(_range(one) for one in shown)}</ul>"


def _range(one: Range) -> str:
    span = ""
    said = percent(one.value)
    if one.interval:
        low, high = (min(1.0, max(0.0, end)) for end in one.interval)
        span = f"<i style='left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%'></i>"
        said += f" <span class='ns-quiet'>[{100 * low:.0f}, {100 * high:.0f}]</span>"
    dot = f"<b style='left:{100 * min(1.0, max(0.0, one.value)):.1f}%'></b>"
    note = f" <small class='ns-quiet'>{escape(one.note)}</small>" if one.note else ""
    kind = " class='ns-baseline'" if one.is_baseline else ""
    return (
        f"<li{kind}><span class='ns-label'>{escape(one.label)}{note}</span>"
        f"<span class='ns-track' aria-hidden='true'>{span}{dot}</span>"
        f"<span class='ns-said'>{said}</span></li>"
    )
