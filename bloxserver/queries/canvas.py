from __future__ import annotations

import json
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Unavailable
from bloxserver.isolation import IsolationUnavailable
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.models.database import release
from bloxserver.organism.load import run_isolated_bytes
from bloxserver.organism.messages import problems_of_json
from bloxserver.organism.problems import OrganismError, Problem, quoted
from bloxserver.queries.flows import read_flow
from bloxserver.raw_json import MAX_STORED_VALUES, RawJson, Value, text_of_value, value_of_text

MAX_NAMES = 5


class FlowCanvas(NamedTuple):
    """A canvas of a flow."""

    canvas_state: Any
    """A `RawJson` if it is large."""
    derived: bool
    """No canvas is stored, and this one was made from the definition."""
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
    try:
        if canvas is None:
            request = definition.encode(errors="surrogatepass")
            problems, derived = split_parts(await _isolated("canvas.derive", request, user_id))
            return FlowCanvas(value_of_text(derived.decode(), MAX_STORED_VALUES), True, _problems(problems))
        compared = json.loads(await _isolated("canvas.compare", _request(canvas, definition), user_id))
    except OrganismError as error:
        return FlowCanvas({} if canvas is None else canvas, canvas is None, error.problems)
    return FlowCanvas(canvas, False, problems_of_json(compared["problems"]) or _differences(compared["names"]))


def _differences(names: list[str]) -> list[Problem]:
    if not names:
        return []
    shown = ", ".join(quoted(name) for name in names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
    message = f"the canvas and the YAML, which is what runs, differ in {shown}"
    hint = "derive the YAML from the canvas and save it, or set canvasState to null to see the YAML"
    return [Problem(1, 1, "canvas_differs", message, hint, severity="warning")]


async def derive_definition(
    session: AsyncSession, user_id: UUID, flow_id: UUID, canvas: dict[str, Any] | RawJson | None
) -> Derived:
    """The definition of the given canvas, or of the flow's stored canvas. Raises `NotFound` and `Unavailable`."""
    flow = await read_flow(session, user_id, flow_id)
    request = _request(canvas or flow.canvas_state, flow.organism_yaml)
    definition = flow.organism_yaml
    await release(session)
    try:
        problems, derived = split_parts(await _isolated("organism.derive", request, user_id))
    except OrganismError as error:
        return Derived(definition, error.problems)
    return Derived(derived.decode(errors="surrogatepass"), _problems(problems))


def _request(canvas: Value, definition: str) -> bytes:
    return join_parts([text_of_value(canvas).encode(errors="surrogatepass"), definition.encode(errors="surrogatepass")])


def _problems(values: bytes) -> list[Problem]:
    return problems_of_json(json.loads(values))


async def _isolated(function: str, request: bytes, user_id: UUID) -> bytes:
    try:
        # The canvas and the definition have been accepted as bodies, each within the limit of a body.
        return await run_isolated_bytes(function, request, user_id, max_bytes=len(request))
    except IsolationUnavailable as error:
        raise Unavailable("isolation_unavailable", f"The canvas cannot be converted now: {error}") from None
