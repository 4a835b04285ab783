"""The variables of flows."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.tables import FlowRecord, FlowVarsRecord
from bloxserver.queries.requesters import owned_by


async def read_vars(session: AsyncSession, user_id: UUID, flow_id: UUID) -> dict[str, Any]:
    """The variables of the user's flow. Raises `NotFound`."""
    row = (
        await session.execute(
            sa.select(FlowVarsRecord.values)
            .select_from(FlowRecord)
            .outerjoin(FlowVarsRecord, FlowVarsRecord.id == FlowRecord.vars_id)
            .where(owned_by(user_id), FlowRecord.id == flow_id)
        )
    ).first()
    if row is None:
        raise NotFound("Flow")
    values: dict[str, Any] = json.loads(row[0] or "{}")
    return values
