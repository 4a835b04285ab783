#!/usr/bin/env python3
"""Draws organisms as SVG, with the layout of the canvas:

.venv/bin/python scripts/draw_organism.py examples/*.yaml   writes docs/examples/NAME.svg for each file
"""

# ruff: noqa: T201 -- prints the names of the written files

from __future__ import annotations

import sys
from collections import defaultdict
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.canvas import AGENT, CASE, ERROR, OTHERWISE, TOOL, yaml_to_canvas
from bloxserver.organism.layout import COLUMN_WIDTH, ROW_HEIGHT
from bloxserver.organism.yaml_loader import load

DRAWINGS = Path(__file__).parents[1] / "docs/examples"

MARGIN = 24
BOX_HEIGHT = 52
ROW = 100
GAP = 72
"""Distance of columns whose edges have no labels."""
CURVE_WIDTH = 48
"""Width of the part of an edge that changes the row."""
MIN_BOX_WIDTH = 104
NAME_CHARACTER, HANDLER_CHARACTER, LABEL_CHARACTER = 8.4, 7.0, 6.1
"""Approximate width of a character."""
LINE = 13
LABEL_COLUMNS, LABEL_LINES = 36, 3

STYLES = {
    ERROR: 'stroke="#b91c1c" marker-end="url(#error)"',
    TOOL: 'stroke="#475569" stroke-dasharray="5 4" marker-start="url(#tip)" marker-end="url(#tip)"',
}
PLAIN = 'stroke="#475569" marker-end="url(#tip)"'
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" \
font-family="Helvetica, Arial, sans-serif" font-size="12" role="img" aria-labelledby="title">
  <title id="title">{title}</title>
  <defs>
    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">
      <path d="M0 0 10 5 0 10z" fill="#475569"/>
    </marker>
    <marker id="error" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
      <path d="M0 0 10 5 0 10z" fill="#b91c1c"/>
    </marker>
  </defs>
  <rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>
"""


class Box(NamedTuple):
    column: int
    row: int
    name: str
    below: str
    is_agent: bool


class Edge(NamedTuple):
    source: Box
    target: Box
    handle: str
    label: list[str]


def draw(text: str) -> str:
    """Draw an organism as SVG. Invalid parts of a definition are omitted."""
    canvas, _ = yaml_to_canvas(text, get_registry())
    boxes = {node["id"]: _box(node) for node in canvas["nodes"]}
    cases = {node["id"]: (node["data"].get("config") or {}).get("cases", []) for node in canvas["nodes"]}
    edges = [
        Edge(boxes[edge["source"]], boxes[edge["target"]], edge["sourceHandle"], _label(edge, cases[edge["source"]]))
        for edge in canvas["edges"]
    ]
    width = _box_width(boxes.values())
    lefts = _lefts(list(boxes.values()), edges, width)
    rows = max((box.row for box in boxes.values()), default=0)
    title = f"{load(text).value['organism']['name']}: {', '.join(box.name for box in boxes.values())}"  # type: ignore[index,call-overload]
    size = {"width": lefts[-1] + width + MARGIN, "height": 2 * MARGIN + rows * ROW + BOX_HEIGHT}
    parts = [HEAD.format(title=escape(title), **size)]
    parts += [_draw_box(box, lefts[box.column], width) for box in boxes.values()]
    leaving: dict[Box, list[Edge]] = defaultdict(list)
    for edge in edges:
        leaving[edge.source].append(edge)
    parts += [_draw_edge(edge, leaving[edge.source], lefts, width) for edge in edges]
    return "".join(parts) + "</svg>\n"


def _box(node: dict[str, Any]) -> Box:
    position, data = node["position"], node["data"]
    is_agent = node["type"] == AGENT
    below = "agent" if is_agent else str(data.get("handler"))
    return Box(position["x"] // COLUMN_WIDTH, position["y"] // ROW_HEIGHT, str(data["label"]), below, is_agent)


def _label(edge: dict[str, Any], cases: list[dict[str, Any]]) -> list[str]:
    """Return the lines of an edge's label. `payload.` is omitted from conditions."""
    handle, when = edge["sourceHandle"], edge["data"]["when"]
    if handle.startswith(CASE):
        when = cases[int(handle.removeprefix(CASE))]["when"]
    words = [{ERROR: "on error", TOOL: "tool", OTHERWISE: "otherwise"}.get(handle), when]
    text = " ".join(word for word in words if word).replace("payload.", "").replace(" && ", " &&\n")
    lines = [line for part in text.splitlines() for line in wrap(part, LABEL_COLUMNS)]
    return [*lines[: LABEL_LINES - 1], lines[LABEL_LINES - 1] + " …"] if len(lines) > LABEL_LINES else lines


def _box_width(boxes: Any) -> int:
    widths = [max(len(box.name) * NAME_CHARACTER, len(box.below) * HANDLER_CHARACTER) + 24 for box in boxes]
    return round(max([MIN_BOX_WIDTH, *widths]))


def _lefts(boxes: list[Box], edges: list[Edge], width: int) -> list[int]:
    """Return the left position of each column, with space for the labels of incoming edges before it."""
    lefts = [MARGIN]
    for column in range(1, max((box.column for box in boxes), default=0) + 1):
        lines = [line for edge in edges if edge.target.column == column for line in edge.label]
        room = max((len(line) for line in lines), default=0) * LABEL_CHARACTER
        lefts.append(lefts[-1] + width + round(GAP + room))
    return lefts


def _middle(box: Box) -> int:
    return MARGIN + box.row * ROW + BOX_HEIGHT // 2


def _draw_box(box: Box, left: int, width: int) -> str:
    top, middle = MARGIN + box.row * ROW, left + width // 2
    colours = 'fill="#ecfdf5" stroke="#34a077"' if box.is_agent else 'fill="#f1f5f9" stroke="#94a3b8"'
    return (
        f'  <rect x="{left}" y="{top}" width="{width}" height="{BOX_HEIGHT}" rx="8" {colours} stroke-width="1.5"/>\n'
        f'  <text x="{middle}" y="{top + 22}" font-size="14" font-weight="bold" fill="#0f172a" text-anchor="middle">'
        f"{escape(box.name)}</text>\n"
        f'  <text x="{middle}" y="{top + 40}" fill="#475569" text-anchor="middle">{escape(box.below)}</text>\n'
    )


def _draw_edge(edge: Edge, leaving: list[Edge], lefts: list[int], width: int) -> str:
    """Draw a curve from the right side of the source, where edges are spread out, to the left side of the target."""
    number = sorted(leaving, key=lambda one: one.target.row).index(edge)
    start_y = _middle(edge.source) + round((number - (len(leaving) - 1) / 2) * 12)
    start_x, end_x, end_y = lefts[edge.source.column] + width, lefts[edge.target.column], _middle(edge.target)
    curve_end, half = start_x + CURVE_WIDTH, start_x + CURVE_WIDTH // 2
    style = STYLES.get(edge.handle, PLAIN)
    path = f"M{start_x + 2} {start_y}C{half} {start_y} {half} {end_y} {curve_end} {end_y}H{end_x - 3}"
    svg = f'  <path d="{path}" fill="none" stroke-width="1.6" {style}/>\n'
    for index, line in enumerate(edge.label):
        y = end_y - 6 - (len(edge.label) - 1 - index) * LINE
        colour = "#b91c1c" if edge.handle == ERROR else "#334155"
        attributes = f'x="{end_x - 16}" y="{y}" font-size="11" text-anchor="end"'
        svg += f'  <text {attributes} fill="{colour}">{escape(line)}</text>\n'
    return svg


if __name__ == "__main__":
    DRAWINGS.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        drawing = DRAWINGS / f"{Path(name).stem}.svg"
        drawing.write_text(draw(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
        print(drawing.relative_to(DRAWINGS.parents[1]))
