from __future__ import annotations

import json
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import release
from bloxserver.organism.canvas import Canvas
from bloxserver.organism.load import run_isolated
from bloxserver.organism.messages import problems_of_json
from bloxserver.organism.problems import Problem, quoted
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
    """The flow's stored canvas, or one derived from its definition. Raises `NotFound` and `Unavailable`."""
    flow = await read_flow(session, user_id, flow_id)
    canvas, definition = flow.canvas_state, flow.organism_yaml
    await release(session)
    if canvas is None:
        derived = await run_isolated("canvas.derive", definition.encode(errors="surrogatepass"), user_id)
        return FlowCanvas(derived["canvas"], True, problems_of_json(derived["problems"]))
    request = json.dumps({"canvas": canvas, "definition": definition}).encode()
    compared = await run_isolated("canvas.compare", request, user_id)
    return FlowCanvas(canvas, False, problems_of_json(compared["problems"]) or _differences(compared["names"]))


def _differences(names: list[str]) -> list[Problem]:
    if not names:
        return []
    shown = ", ".join(quoted(name) for name in names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
    message = f"the canvas and the YAML, which is what runs, differ in {shown}"
    hint = "derive the YAML from the canvas and save it, or set canvasState to null to see the YAML"
    return [Problem(1, 1, "canvas_differs", message, hint, severity="warning")]


async def derive_definition(
    session: AsyncSession, user_id: UUID, flow_id: UUID, canvas: dict[str, Any] | None
) -> Derived:
    """The definition of the given canvas, or of the flow's stored canvas. Raises `NotFound` and `Unavailable`."""
    flow = await read_flow(session, user_id, flow_id)
    request = json.dumps({"canvas": canvas or flow.canvas_state, "definition": flow.organism_yaml}).encode()
    await release(session)
    derived = await run_isolated("organism.derive", request, user_id)
    return Derived(derived["definition"], problems_of_json(derived["problems"]))
