"""The values that are stored with an accepted execution."""

from __future__ import annotations

from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Conflict, NotFound
from bloxserver.models.tables import ExecutionRecord, FlowRecord, FlowVersionRecord, TriggerRecord, UsageRecord
from bloxserver.queries.usage import period_at
from bloxserver.services.executions import Input, receive_webhook, run_flow
from bloxserver.settings import get_settings
from tests.factories import create_flow, create_trigger, create_user

GIVEN = Input("hello")


async def webhook(session: AsyncSession) -> TriggerRecord:
    """A webhook of a running flow whose active version, 4, is not its newest."""
    flow = await create_flow(session, await create_user(session), latest_version=5)
    versions = [FlowVersionRecord(flow_id=flow.id, number=number, organism_yaml="x") for number in (4, 5)]
    session.add_all(versions)
    await session.flush()
    flow.active_version_id, flow.active_version = versions[0].id, 4
    return await create_trigger(session, flow)


async def stored(session: AsyncSession, execution_id: UUID) -> ExecutionRecord:
    return await session.get_one(ExecutionRecord, execution_id, populate_existing=True)


async def test_manual_run_stores_its_version(session: AsyncSession) -> None:
    trigger = await webhook(session)
    flow = await session.get_one(FlowRecord, trigger.flow_id)
    accepted = await run_flow(session, flow.user_id, "free", period_at(now(), None, None), flow.id, GIVEN)
    execution = await stored(session, accepted.id)
    assert (execution.flow_version_id, execution.flow_version) == (flow.active_version_id, 4)
    assert (execution.depth, execution.parent_id, execution.input_payload) == (0, None, "hello")


@pytest.mark.parametrize("depth", [0, 1, 8])
async def test_webhook_run_stores_its_version_and_call_depth(session: AsyncSession, depth: int) -> None:
    trigger = await webhook(session)
    flow = await session.get_one(FlowRecord, trigger.flow_id)
    execution = await stored(session, await receive_webhook(session, trigger.webhook_token or "", GIVEN, depth))
    assert (execution.flow_version_id, execution.flow_version) == (flow.active_version_id, 4)
    assert (execution.depth, execution.parent_id, execution.input_payload) == (depth, None, "hello")


async def test_webhook_with_excessive_call_depth_is_refused(session: AsyncSession) -> None:
    """The limit ends a flow that calls its own webhook."""
    trigger = await webhook(session)
    with pytest.raises(BadRequest, match=r"^Flows call each other more than 8 deep$") as caught:
        await receive_webhook(session, trigger.webhook_token or "", GIVEN, get_settings().max_call_depth + 1)
    assert caught.value.code == "call_depth_exceeded"
    for table in (ExecutionRecord, UsageRecord):
        assert await session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


async def test_call_depth_of_a_webhook_reveals_nothing_about_the_token(session: AsyncSession) -> None:
    trigger = await webhook(session)
    with pytest.raises(NotFound):
        await receive_webhook(session, "no-such-token", GIVEN, 100)
    trigger.enabled = False
    await session.flush()
    with pytest.raises(Conflict):
        await receive_webhook(session, trigger.webhook_token or "", GIVEN, 100)
