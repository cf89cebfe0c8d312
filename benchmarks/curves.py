"""Over-optimisation as a picture: true taste and reward models' score of every update against sqrt(KL).

Where the score goes on rising while the taste falls, the policy learns to please its reward models (Gao et
al. 2022, arXiv 2210.10760).
"""

import math
from collections.abc import Mapping
from typing import Any


def as_svg(lines: list[dict[str, Any]], width: int = 760, height: int = 300) -> str:
    """True taste (left) and reward models' score (right) of every update against sqrt(KL)."""
    curves = {line["row"]: line["curve"] for line in lines if line["curve"]}
    colours = dict(zip(curves, ("#2563eb", "#d9480f", "#2b8a3e"), strict=False))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for panel, (key, title) in enumerate((("taste", "true taste"), ("score", "score of the reward models"))):
        every = [point for curve in curves.values() for point in curve] or [{"kl": 0.0, key: 0.0}]
        xs = [math.sqrt(max(point["kl"], 0.0)) for point in every]
        ys = [point[key] for point in every]
        left, top, wide, high = 50 + panel * width / 2, 30, width / 2 - 80, height - 80
        low, span = min(ys), max(max(ys) - min(ys), 1e-9)

        def place(
            point: Mapping[str, float],
            key: str = key,
            box: tuple[float, float, float, float] = (left, top, wide, high),
            scale: tuple[float, float, float] = (max(*xs, 1e-9), low, span),
        ) -> str:
            x = box[0] + box[2] * math.sqrt(max(point["kl"], 0.0)) / scale[0]
            return f"{x:.1f},{box[1] + box[3] * (1 - (point[key] - scale[1]) / scale[2]):.1f}"

        parts.append(
            f'<text x="{left}" y="18" font-size="13">{title}</text>'
            f'<path d="M{left} {top}V{top + high}H{left + wide}" fill="none" stroke="#888"/>'
            f'<text x="{left - 6}" y="{top + 8}" font-size="11" text-anchor="end">{max(ys):.1f}</text>'
            f'<text x="{left - 6}" y="{top + high}" font-size="11" text-anchor="end">{low:.1f}</text>'
            f'<text x="{left + wide}" y="{top + high + 16}" font-size="11" text-anchor="end">'
            f"sqrt(KL), to {max(xs):.1f}</text>"
        )
        for row, curve in curves.items():
            points = " ".join(place(point) for point in curve)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colours[row]}" stroke-width="2"/>'
            )
    for i, (row, colour) in enumerate(colours.items()):
        parts.append(
            f'<text x="{50 + i * 120}" y="{height - 12}" font-size="13" fill="{colour}">{row}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
