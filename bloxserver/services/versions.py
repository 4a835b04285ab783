"""A flow's definitions as they were saved."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord, FlowVersionRecord
from bloxserver.organism.react_flow import CanvasState


async def current_version(session: AsyncSession, flow: FlowRecord) -> FlowVersionRecord:
    """The version that holds the flow's definition as it is now; made where the newest one differs.

    The caller has written or locked the flow's row in this transaction, which keeps two versions from being made
    at once.
    """
    newest = (
        sa.select(FlowVersionRecord)
        .where(FlowVersionRecord.flow_id == flow.id)
        .order_by(FlowVersionRecord.number.desc())
        .limit(1)
    )
    with session.no_autoflush:  # the flow's change is written with its version, in one statement
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
    """Whether it is this definition."""
    if one.organism_yaml != organism_yaml:
        return False
    return _is_same(one.canvas_state, canvas_state) or _is_same(_shown(one.canvas_state), _shown(canvas_state))


def _shown(canvas: Any) -> Any:
    """A canvas as clients get it, and send it back; one that others wrote may lack what has a default."""
    try:
        return canvas and CanvasState.model_validate(canvas).model_dump(by_alias=True)
    except ValidationError:
        return canvas


def _is_same(one: Any, other: Any) -> bool:
    """Equality as JSON has it: 1 is 1.0 and is not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
