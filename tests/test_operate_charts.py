"""Charts drawn as SVG, and figures read from reports that may hold anything."""

import math
import re

import pytest

from chatbot.pages.operate_charts import HEIGHT, WIDTH, Chart, Point, Range, Series, chart, ranges, ticks
from chatbot.pages.operate_report import interval, number, part, sentences, signed


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (-0.12, 0.31, [-0.1, 0, 0.1, 0.2, 0.3]),
        (1e6, 1e6 + 3, [1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [-3e7, 5e9], [0.0, 1e-9], [0.1, 0.2, 0.15]])
def test_every_point_lies_inside_the_picture(values: list[float]) -> None:
    points = [Point(float(i), value, "") for i, value in enumerate(values)]
    html = chart(Chart("t", "x", "y", [Series("s", points)], limit=(1.5 * max(values), "stop")))
    placed = re.findall(r"<circle cx='([\d.-]+)' cy='([\d.-]+)'", html)
    assert len(placed) == len(values)
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in placed)


def test_a_chart_without_points_is_no_chart() -> None:
    assert chart(Chart("t", "x", "y", [Series("s", [])])) == ""


def test_a_range_beyond_its_line_is_cut_and_still_said() -> None:
    html = ranges([Range("<b>", 0.97, (0.9, 1.2))])
    assert "left:90.0%;width:10.0%" in html and "97 %" in html and "<b>" not in html.replace("<b style", "")


def test_odd_values_read_as_nothing() -> None:
    assert [number(value) for value in (True, "1", math.nan, math.inf, None, 2)] == [None] * 5 + [2.0]
    assert [interval(v) for v in ([0.1, 0.2], [0.3, 0.1], [None, 1], "ab", 3)] == [(0.1, 0.2), *[None] * 4]
    assert part({"a": {"b": {"c": 1}}}, "a", "b") == {"c": 1} and part({"a": 3}, "a", "b") == {}
    assert sentences(["One.", 3, ""]) == ["One."] and sentences("Two.") == ["Two."] and sentences(None) == []
    assert signed(-0.001) == "+0.00"
