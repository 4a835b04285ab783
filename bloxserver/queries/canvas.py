from __future__ import annotations

import asyncio
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.canvas import Canvas, yaml_to_canvas
from bloxserver.organism.canvas_to_yaml import canvas_to_yaml, changed_listeners
from bloxserver.organism.problems import OrganismError, Problem, quoted
from bloxserver.queries.flows import read_flow

MAX_NAMES = 5


class FlowCanvas(NamedTuple):
    """A canvas of a flow. `derived` means that no canvas is stored, and this one was made from the definition."""

    canvas_state: Canvas
    derived: bool
    problems: list[Problem]


class Derived(NamedTuple):
    """The definition that a canvas describes."""

    organism_yaml: str
    problems: list[Problem]


async def read_canvas(session: AsyncSession, user_id: UUID, flow_id: UUID) -> FlowCanvas:
    """The flow's stored canvas, or one derived from its definition. Raises `NotFound`."""
    flow = await read_flow(session, user_id, flow_id)
    if flow.canvas_state is None:
        canvas, problems = await asyncio.to_thread(yaml_to_canvas, flow.organism_yaml, get_registry())
        return FlowCanvas(canvas, True, problems)
    problems = await asyncio.to_thread(_difference, flow.canvas_state, flow.organism_yaml)
    return FlowCanvas(flow.canvas_state, False, problems)


def _difference(canvas: dict[str, Any], text: str) -> list[Problem]:
    try:
        names = changed_listeners(canvas, text, get_registry())
    except OrganismError as error:
        return error.problems
    if not names:
        return []
    shown = ", ".join(quoted(name) for name in names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
    message = f"the canvas and the YAML, which is what runs, differ in {shown}"
    hint = "derive the YAML from the canvas and save it, or set canvasState to null to see the YAML"
    return [Problem(1, 1, "canvas_differs", message, hint, severity="warning")]


async def derive_definition(
    session: AsyncSession, user_id: UUID, flow_id: UUID, canvas: dict[str, Any] | None
) -> Derived:
    """The definition of the given canvas, or of the flow's stored canvas. Raises `NotFound`."""
    flow = await read_flow(session, user_id, flow_id)
    return await asyncio.to_thread(_derive, canvas or flow.canvas_state, flow.organism_yaml)


def _derive(canvas: dict[str, Any] | None, text: str) -> Derived:
    registry = get_registry()
    if canvas is None:
        canvas, _ = yaml_to_canvas(text, registry)
    return Derived(*canvas_to_yaml(canvas, text, registry))
