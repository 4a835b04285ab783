"""Recording deliveries. The rest is tested through the API."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa

from bloxserver.errors import BadRequest
from bloxserver.models.database import Database
from bloxserver.models.tables import WebhookDeliveryRecord
from bloxserver.queries.webhook_deliveries import MAX_DELIVERIES
from bloxserver.services.webhook_deliveries import MAX_MESSAGE, Rejection, record_rejections
from tests import factories

ERROR = BadRequest("code", "m" * 1000)


async def test_concurrent_transactions_do_not_wait_for_each_other_in_a_cycle(live_database: Database) -> None:
    """They delete the oldest rows of the same webhooks."""
    async with live_database.sessions() as session:
        flow = await factories.create_flow(session, await factories.create_user(session))
        triggers = [(await factories.create_trigger(session, flow)).id for _ in range(3)]

    async def record(number: int) -> None:
        async with live_database.transaction() as session:
            ids = triggers if number % 2 else triggers[::-1]
            await record_rejections(session, [Rejection(trigger_id, ERROR, number) for trigger_id in ids * 3])

    for _ in range(3):
        await asyncio.gather(*(record(number) for number in range(16)))
    await record(0)
    async with live_database.sessions() as session:
        rows = (await session.scalars(sa.select(WebhookDeliveryRecord))).all()
    assert len(rows) == 3 * MAX_DELIVERIES
    assert {len(row.message) for row in rows} == {MAX_MESSAGE}
