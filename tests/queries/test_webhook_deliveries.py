"""Reading deliveries."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.enums import TriggerType
from bloxserver.models.tables import WebhookDeliveryRecord
from bloxserver.queries.webhook_deliveries import MAX_DELIVERIES, read_deliveries
from tests import factories
from tests.statements import count_statements


async def test_accepted_and_rejected_deliveries_are_one_list(
    session: AsyncSession, database_engine: AsyncEngine
) -> None:
    user = await factories.create_user(session)
    flow = await factories.create_flow(session, user)
    trigger = await factories.create_trigger(session, flow)
    moment = now() - timedelta(hours=1)
    for second in range(0, 140, 2):
        await factories.create_execution(
            session,
            flow,
            trigger_id=trigger.id,
            trigger_type=TriggerType.WEBHOOK,
            started_at=moment + timedelta(seconds=second),
        )
        values = {"status": 400, "code": "c", "message": "m", "bytes": 1}
        received_at = moment + timedelta(seconds=second + 1)
        session.add(WebhookDeliveryRecord(trigger_id=trigger.id, received_at=received_at, **values))
        await session.flush()
    await factories.create_execution(session, flow, trigger_id=trigger.id, trigger_type=TriggerType.SCHEDULE)
    with count_statements(database_engine) as statements:
        found = await read_deliveries(session, user.id, flow.id, trigger.id)
    assert len(statements) == 3
    assert [delivery.outcome for delivery in found] == ["rejected", "accepted"] * (MAX_DELIVERIES // 2)
    assert [delivery.received_at for delivery in found] == [
        moment + timedelta(seconds=second) for second in range(139, 139 - MAX_DELIVERIES, -1)
    ]
    other = await factories.create_user(session)
    with pytest.raises(NotFound):
        await read_deliveries(session, other.id, flow.id, trigger.id)
