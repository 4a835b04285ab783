"""Versions: the saved definitions of a flow."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from bloxserver.models.tables import FlowRecord, FlowVersionRecord
from bloxserver.organism.react_flow import CanvasState
from bloxserver.plans import Plan
from bloxserver.queries.usage import stored_bytes_of
from bloxserver.queries.versions import spare_versions
from bloxserver.raw_json import RawJson
from bloxserver.services.usage import require_storage

MAX_SURPLUS = 10
"""Versions that one change deletes. A definition may be as large as a request."""


async def current_version(session: AsyncSession, flow: FlowRecord, plan: Plan | None = None) -> FlowVersionRecord:
    """The version of the flow's current definition. It is created if the newest version differs.

    With `plan`, the limits of the plan apply to a new version: it may delete old versions. Raises `LimitReached` if the
    user stores too many bytes.

    The caller has written or locked the flow's row in this transaction, so no other transaction creates a version
    concurrently.
    """
    of_flow = FlowVersionRecord.flow_id == flow.id
    newest = sa.select(FlowVersionRecord, _count(flow.id), stored_bytes_of(flow.user_id)).where(of_flow)
    with session.no_autoflush:  # the flow's change and its version are flushed together
        row = (await session.execute(newest.order_by(FlowVersionRecord.number.desc()).limit(1))).first()
    version, number, stored = row or (None, 0, 0)
    if version is None or not is_same_definition(version, flow.organism_yaml, flow.canvas_state):
        if plan is not None:
            require_storage(plan, stored)
        version = FlowVersionRecord(
            flow_id=flow.id,
            number=1 if version is None else version.number + 1,
            organism_yaml=flow.organism_yaml,
            canvas_state=flow.canvas_state,
        )
        session.add(version)
        number += 1
    flow.latest_version = version.number
    await session.flush()
    if plan is not None and number > plan.versions_per_flow:
        await _delete_surplus(session, flow.id, number - plan.versions_per_flow)
    return version


def _count(flow_id: UUID) -> sa.ScalarSelect[int]:
    version = aliased(FlowVersionRecord)
    return sa.select(sa.func.count()).select_from(version).where(version.flow_id == flow_id).scalar_subquery()


async def _delete_surplus(session: AsyncSession, flow_id: UUID, number: int) -> None:
    """Delete the oldest versions that are not in use."""
    oldest = spare_versions(flow_id).order_by(FlowVersionRecord.number).limit(min(number, MAX_SURPLUS))
    await session.execute(
        sa.delete(FlowVersionRecord)
        .where(FlowVersionRecord.id.in_(oldest))
        .execution_options(synchronize_session=False)
    )


def is_same_definition(
    one: FlowRecord | FlowVersionRecord, organism_yaml: str, canvas_state: dict[str, Any] | RawJson | None
) -> bool:
    """Whether the version holds this definition. Large canvases are compared as text."""
    if one.organism_yaml != organism_yaml:
        return False
    if isinstance(one.canvas_state, RawJson) or isinstance(canvas_state, RawJson):
        return _text(one.canvas_state) == _text(canvas_state)
    return _is_same(one.canvas_state, canvas_state) or _is_same(_shown(one.canvas_state), _shown(canvas_state))


def _text(canvas: Any) -> str:
    """A canvas as it is stored."""
    return canvas.text if isinstance(canvas, RawJson) else json.dumps(canvas)


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
