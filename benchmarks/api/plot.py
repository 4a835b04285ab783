"""The results as an SVG: requests per second by the number of executions, on logarithmic axes.

The plot has a white background of its own, so that it is readable on light and on dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.api.requests import BARE, COUNTING, KEPT, OURS
from benchmarks.api.samples import Row
from benchmarks.api.targets import CONCURRENCY

TITLE = "Requests per second by the number of executions of the flow"
ENDPOINTS = {"webhook": "POST a webhook", "list": "GET 50 executions and total", "stats": "GET statistics"}

MARGIN = 20
TOP = 92
PANEL_WIDTH, PANEL_HEIGHT = 280, 200
LEFT, GAP = 76, 24
"""The width of the labels of the vertical axis, and the space between panels."""
PANEL_BOTTOM = 52
INK, FAINT, GRID = "#0f172a", "#475569", "#e2e8f0"


@dataclass(frozen=True)
class Style:
    label: str
    colour: str
    dash: str
    width: float
    is_ours: bool = False

    @property
    def stroke(self) -> str:
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'stroke="{self.colour}" stroke-width="{self.width}"{dash}'


STYLES = {
    COUNTING: Style("bare server that counts", "#64748b", "", 1.5),
    BARE: Style("bare server that counts", "#64748b", "", 1.5),
    KEPT: Style("bare server with kept totals", "#b45309", "6 4", 1.5),
    OURS: Style("BloxServer", "#0d7a5f", "", 3, is_ours=True),
}
"""In the order of drawing. A webhook counts nothing, so its only bare server has the style of the first one."""

Points = list[tuple[int, float]]


def draw(rows: Mapping[str, Sequence[Row]]) -> str:
    """Draw one line of panels for each database: rows that were measured with 16 connections."""
    panels = {database: dict(_panels(measured)) for database, measured in rows.items()}
    width = 2 * MARGIN + LEFT + len(ENDPOINTS) * PANEL_WIDTH + (len(ENDPOINTS) - 1) * GAP
    height = TOP + len(panels) * (PANEL_HEIGHT + PANEL_BOTTOM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img" aria-labelledby="title">',
        f'<title id="title">{TITLE}</title>',
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
        _text(MARGIN, 32, TITLE, size=16, weight="bold"),
        *_legend(),
    ]
    for line, (database, curves) in enumerate(panels.items()):
        top = TOP + line * (PANEL_HEIGHT + PANEL_BOTTOM)
        rates = [rate for lines in curves.values() for points in lines.values() for _, rate in points if rate > 0]
        axis = Axis(min(rates, default=1), max(rates, default=10))
        for column, endpoint in enumerate(ENDPOINTS):
            left = MARGIN + LEFT + column * (PANEL_WIDTH + GAP)
            parts += _panel(left, top, f"{database}: {ENDPOINTS[endpoint]}", curves.get(endpoint, {}), axis)
            if column == 0:
                parts += (_text(left - 8, top + axis.y(tick) + 4, f"{tick:,}/s", anchor="end") for tick in axis.ticks)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panels(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Points]]]:
    """Yield each endpoint and the points of its curves."""
    for endpoint in ENDPOINTS:
        curves: dict[str, Points] = {}
        for row in rows:
            if row.endpoint == endpoint and row.concurrency == CONCURRENCY:
                for variant, summary in row.variants.items():
                    curves.setdefault(variant, []).append((row.history, summary.rate))
        yield endpoint, {variant: curves[variant] for variant in STYLES if variant in curves}


class Axis:
    """The logarithmic vertical axis of a line of panels, from one power of ten to another."""

    def __init__(self, least: float, most: float) -> None:
        self._first = math.floor(math.log10(least))
        self._last = max(self._first + 1, math.ceil(math.log10(most)))

    @property
    def ticks(self) -> list[int | float]:
        return [10**power for power in range(self._first, self._last + 1)]

    def y(self, rate: float) -> float:
        share = (math.log10(rate) - self._first) / (self._last - self._first)
        return PANEL_HEIGHT * (1 - share)


def _panel(left: float, top: float, title: str, curves: dict[str, Points], axis: Axis) -> Iterator[str]:
    yield _text(left, top - 8, title, weight="bold")
    for tick in axis.ticks:
        y = top + axis.y(tick)
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + PANEL_WIDTH}" y2="{y:.1f}" stroke="{GRID}"/>'
    histories = sorted({history for points in curves.values() for history, _ in points})
    for history in histories:
        anchor = "start" if history == histories[0] else "end" if history == histories[-1] else "middle"
        x = left + _x(history, histories)
        yield _text(x, top + PANEL_HEIGHT + 18, f"{history:,}", anchor=anchor, colour=FAINT)
    for variant, points in curves.items():
        yield from _curve(left, top, STYLES[variant], points, histories, axis)


def _curve(left: float, top: float, style: Style, points: Points, histories: list[int], axis: Axis) -> Iterator[str]:
    shown = [(left + _x(history, histories), top + axis.y(rate), rate) for history, rate in points if rate > 0]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in shown)
    yield f'<polyline points="{path}" fill="none" {style.stroke}/>'
    for x, y, rate in shown:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{style.width + 1}" fill="{style.colour}"/>'
        if style.is_ours:
            anchor = "start" if x == shown[0][0] else "end" if x == shown[-1][0] else "middle"
            yield _text(x, y + 18, f"{rate:,.0f}", anchor=anchor, weight="bold", colour=style.colour)


def _x(history: int, histories: list[int]) -> float:
    first, last = math.log10(histories[0]), math.log10(histories[-1])
    share = 0.5 if first == last else (math.log10(history) - first) / (last - first)
    return 8 + share * (PANEL_WIDTH - 16)


def _legend() -> Iterator[str]:
    x = MARGIN
    for style in (STYLES[OURS], STYLES[COUNTING], STYLES[KEPT]):
        yield f'<line x1="{x}" y1="54" x2="{x + 32}" y2="54" {style.stroke}/>'
        yield _text(x + 40, 58, style.label, colour=FAINT)
        x += 70 + 7 * len(style.label)
    yield _text(x, 58, f"{CONCURRENCY} connections, logarithmic axes", colour=FAINT)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal", colour: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}" stroke="#ffffff" stroke-width="4" stroke-linejoin="round" paint-order="stroke">'
        f"{escape(text)}</text>"
    )
