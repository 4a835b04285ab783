"""Stops flows that a smaller plan does not allow to run. Nothing is deleted."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import FlowStatus, Tier
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.plans import get_plan
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.running_flows import ACTIVE, STOPPED_BY_PLAN, read_running
from bloxserver.services.flows import record_request, transition_flow


async def stop_flows_beyond(session: AsyncSession, user: UserRecord, tier: Tier) -> int:
    """Stop the running flows that the plan of this tier does not allow, if the user's plan allows more flows.

    The most recently used flows keep running: see `read_running`. Returns the number of flows that are stopping.

    The calling code has locked the user's row with `key_share`, and changes the tier afterwards. A change of the row
    before the flows are locked would deadlock with transactions that hold a flow and insert rows of the user.
    """
    limit = get_plan(tier, user.limits).flows
    if limit >= get_plan(user.tier, user.limits).flows:
        return 0
    wanted = sa.select(FlowRecord.id).where(owned_by(user.id), FlowRecord.status.in_(ACTIVE)).order_by(FlowRecord.id)
    await session.execute(wanted.with_for_update(key_share=True))
    beyond = (await read_running(session, user.id))[limit:]
    for flow in beyond:
        values = {"stop_requested_at": now(), "error_message": STOPPED_BY_PLAN}
        await transition_flow(session, flow.id, FlowStatus.STOPPING, **values)
        await record_request(session, user.id, flow.id, flow.status, FlowStatus.STOPPING, reason=STOPPED_BY_PLAN)
    if beyond:
        wake_engine_after_commit(session, WakeReason.FLOW)
    return len(beyond)
