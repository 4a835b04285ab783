from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.tables import FlowRecord, FlowVersionRecord


async def current_version(session: AsyncSession, flow_id: UUID) -> UUID:
    """The version that holds the flow's definition as it is now; made where the newest one differs.

    The caller has written the flow's row in this transaction, which keeps two versions from being made at once.
    """
    flow = (
        await session.execute(
            sa.select(FlowRecord.organism_yaml, FlowRecord.canvas_state).where(FlowRecord.id == flow_id)
        )
    ).one()
    newest = await session.scalar(
        sa.select(FlowVersionRecord)
        .where(FlowVersionRecord.flow_id == flow_id)
        .order_by(FlowVersionRecord.number.desc())
        .limit(1)
    )
    if newest is not None and newest.organism_yaml == flow.organism_yaml and newest.canvas_state == flow.canvas_state:
        return newest.id
    version = FlowVersionRecord(
        flow_id=flow_id,
        number=newest.number + 1 if newest is not None else 1,
        organism_yaml=flow.organism_yaml,
        canvas_state=flow.canvas_state,
    )
    session.add(version)
    await session.flush()
    return version.id
