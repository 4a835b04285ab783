"""Versions: the saved definitions of a flow."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord, FlowVersionRecord
from bloxserver.organism.react_flow import CanvasState


async def current_version(session: AsyncSession, flow: FlowRecord) -> FlowVersionRecord:
    """The version of the flow's current definition. It is created if the newest version differs.

    The caller has written or locked the flow's row in this transaction, so no other transaction creates a version
    concurrently.
    """
    newest = (
        sa.select(FlowVersionRecord)
        .where(FlowVersionRecord.flow_id == flow.id)
        .order_by(FlowVersionRecord.number.desc())
        .limit(1)
    )
    with session.no_autoflush:  # the flow's change and its version are flushed together
        version = await session.scalar(newest)
    if version is None or not is_same_definition(version, flow.organism_yaml, flow.canvas_state):
        version = FlowVersionRecord(
            flow_id=flow.id,
            number=1 if version is None else version.number + 1,
            organism_yaml=flow.organism_yaml,
            canvas_state=flow.canvas_state,
        )
        session.add(version)
    flow.latest_version = version.number
    await session.flush()
    return version


def is_same_definition(
    one: FlowRecord | FlowVersionRecord, organism_yaml: str, canvas_state: dict[str, Any] | None
) -> bool:
    """Whether the version holds this definition."""
    if one.organism_yaml != organism_yaml:
        return False
    return _is_same(one.canvas_state, canvas_state) or _is_same(_shown(one.canvas_state), _shown(canvas_state))


def _shown(canvas: Any) -> Any:
    """A canvas in the form that the API returns. A stored canvas may lack members that have defaults."""
    try:
        return canvas and CanvasState.model_validate(canvas).model_dump(by_alias=True)
    except ValidationError:
        return canvas


def _is_same(one: Any, other: Any) -> bool:
    """JSON equality: 1 equals 1.0 and does not equal true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
