"""Pictures as SVG text: heat maps, bars and lines that follow the page's own colours.

`currentColor` is the page's ink, so the same picture reads on light and dark.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_VIEW = re.compile(r'viewBox="0 0 (\d+) (\d+)"')
SHADE = "#3b7dd8"
SERIES = ("#3b7dd8", "#e0a030", "#2aa876", "#c0504d", "#8e5bd0", "#8a8f98")
NAMED = {
    "trunk": "#8a8f98", "independent": "#e0a030", "first-order-chain": "#8e5bd0", "recurrent-chain": "#2aa876",
    "block-chain": "#3b7dd8", "transformers": "#c0504d",
}  # fmt: skip
"""A subject has one colour wherever it is shown."""


def heat_maps(panels: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Panels side by side on one colour scale. Each: (rows, columns) of probabilities."""
    labelled = len(rows) <= 12 and len(columns) <= 12
    cell_w, cell_h = (46, 26) if labelled else (4, 4)
    left = 12 + (max(len(r) for r in rows) * 8 if labelled else 0)
    bottom = 22 if labelled else 4
    top, gap = 30, 26
    width = len(columns) * cell_w
    step = left + width + gap
    height = top + len(rows) * cell_h + bottom
    peak = max(float(panel.max()) for panel in panels.values()) or 1.0
    parts = []
    for p, (title, panel) in enumerate(panels.items()):
        x0 = p * step + left
        parts.append(_text(x0 + width / 2, 16, title, 14, "middle", bold=True))
        parts.append(
            f'<rect x="{x0}" y="{top}" width="{width}" height="{len(rows) * cell_h}" fill="none" '
            'stroke="currentColor" stroke-opacity=".35"/>'
        )
        for i, row in enumerate(rows):
            if labelled:
                parts.append(_text(x0 - 6, top + (i + 0.68) * cell_h, row, 12, "end"))
            for j in range(len(columns)):
                value = float(panel[i, j])
                if value <= 0:
                    continue
                x, y = x0 + j * cell_w, top + i * cell_h
                shade = max(0.06, (value / peak) ** 0.7)
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{cell_w}" height="{cell_h}" fill="{SHADE}" fill-opacity="{shade:.2f}"/>'
                )
                if labelled and value >= 0.0005:
                    ink = "#fff" if shade > 0.6 else "currentColor"
                    parts.append(_text(x + cell_w / 2, y + cell_h * 0.68, f"{100 * value:.1f}", 11, "middle", ink=ink))
        if labelled:
            for j, column in enumerate(columns):
                parts.append(_text(x0 + (j + 0.5) * cell_w, height - 6, column, 12, "middle"))
    return _svg(step * len(panels), height, parts, "heat maps of first word by last word")


def bars(values: Mapping[str, tuple[float, float]], chance: float | None = None) -> str:
    """Horizontal bars of fractions: name → (value, standard error). chance: a dashed line."""
    left, width, row = max(150, 16 + max(8 * len(name) for name in values)), 420, 28
    parts = []
    for i, (name, (value, error)) in enumerate(values.items()):
        y = 8 + i * row
        parts.append(_text(left - 8, y + 15, name, 13, "end"))
        parts.append(
            f'<rect x="{left}" y="{y + 2}" width="{width}" height="18" fill="currentColor" fill-opacity=".07"/>'
        )
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{width * value:.1f}" height="18" rx="2" fill="{SHADE}"/>')
        low, high = (left + width * min(1, max(0, v)) for v in (value - 2 * error, value + 2 * error))
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="currentColor" stroke-width="2"/>'
        )
        parts.append(_text(left + width + 8, y + 16, f"{100 * value:.2f}%", 13))
    height = 16 + len(values) * row
    if chance is not None:
        x = left + width * chance
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 4}" stroke="currentColor" stroke-dasharray="4 3"/>'
        )
    return _svg(left + width + 80, height, parts, "bars of validity")


@dataclass(frozen=True)
class Point:
    """error: half-length of the bar drawn through it; label: written beside it."""

    x: float
    y: float
    error: float = 0.0
    label: str = ""


def lines(series: Mapping[str, Sequence[float]], x_label: str, y_label: str, first: int = 1) -> str:
    """One line a series over first, first + 1, …"""
    points = {name: [Point(first + k, y) for k, y in enumerate(line)] for name, line in series.items()}
    return plot(points, x_label, y_label, ticks=range(first, first + max(map(len, points.values()))))


def plot(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    *,
    dots: bool = True,
    ticks: Sequence[float] | Mapping[float, str] | None = None,
) -> str:
    """One line and colour a series. ticks: of the x axis, by name where they have one."""
    left, top, width, height = 56, 14, 430, 230
    points = [p for line in series.values() for p in line]
    x_low, x_high = _margin([p.x for p in points])
    low, high = _margin([y for p in points for y in (p.y - p.error, p.y + p.error)])

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - x_low) / (x_high - x_low), top + height * (high - y) / (high - low)

    parts = [
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="currentColor" stroke-opacity=".35"/>',
        _text(left + width / 2, top + height + 36, x_label, 12, "middle"),
        _text(left, 10, y_label, 12),
    ]
    for tick in _ticks(low, high):
        y = at(x_low, tick)[1]
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".12"/>'
        )
        parts.append(_text(left - 6, y + 4, f"{tick:g}", 11, "end"))
    names = ticks if isinstance(ticks, Mapping) else {}
    for tick in _ticks(x_low, x_high) if ticks is None else ticks:
        parts.append(_text(at(tick, low)[0], top + height + 18, names.get(tick, f"{tick:g}"), 12, "middle"))
    for i, (name, line) in enumerate(series.items()):
        colour = NAMED.get(name, SERIES[i % len(SERIES)])
        places = [at(p.x, p.y) for p in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashes = (
            ' stroke-dasharray="6 4"' if name not in NAMED and i >= len(SERIES) else ""
        )  # a second round of the colours
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes}/>')
        for p, (x, y) in zip(line, places, strict=True) if dots else ():
            if p.error:
                y_1, y_2 = at(p.x, p.y - p.error)[1], at(p.x, p.y + p.error)[1]
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_1:.1f}" y2="{y_2:.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
            if p.label:
                parts.append(_text(x + 6, y - 5, p.label, 11))
        y = top + 16 + 20 * i
        swatch = f'x1="{left + width + 10}" x2="{left + width + 28}" y1="{y - 4}" y2="{y - 4}"'
        parts.append(f'<line {swatch} stroke="{colour}" stroke-width="4"{dashes}/>')
        parts.append(_text(left + width + 32, y, name, 12))
    tallest = max(height, 20 * len(series))
    beside = max(210, 44 + 7 * max(map(len, series), default=0))
    return _svg(left + width + beside, top + tallest + 44, parts, f"{y_label} against {x_label}")


def beside(pictures: Sequence[str], label: str) -> str:
    """Several as one, from left to right."""
    sizes = [tuple(float(n) for n in _VIEW.findall(picture)[0]) for picture in pictures]
    parts, x = [], 0.0
    for picture, (width, height) in zip(pictures, sizes, strict=True):
        parts.append(picture.replace("<svg ", f'<svg x="{x:.0f}" height="{height:.0f}" ', 1))
        x += width
    return _svg(x, max(height for _, height in sizes), parts, label)


def _margin(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low or abs(high) or 1)
    return low - room, high + room


def standalone(svg: str) -> str:
    """The picture as a file of its own: dark ink on white."""
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return svg.replace("currentColor", "#1c2230").replace(">", ">" + ground, 1)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between low and high."""
    raw = (high - low) / 4
    scale = 10.0 ** np.floor(np.log10(raw))
    step = min((m * scale for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    return [round(k * step, 10) for k in range(int(np.ceil(low / step)), int(high / step) + 1)]


def _text(
    x: float, y: float, text: str, size: int, anchor: str = "start", bold: bool = False, ink: str = "currentColor"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight} '
        f'font-family="system-ui, sans-serif" fill="{ink}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: list[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
