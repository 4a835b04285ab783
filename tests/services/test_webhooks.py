"""Calls of webhooks. Signatures, keys and deliveries are tested through the API."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import Headers

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.tables import ExecutionRecord, TriggerRecord
from bloxserver.services.webhooks import receive_webhook, webhook_call
from tests import factories


async def test_call_with_the_previous_token_starts_an_execution(session: AsyncSession) -> None:
    flow = await factories.create_flow(session, await factories.create_user(session))
    trigger = await factories.create_trigger(
        session, flow, previous_token="previous", previous_token_expires_at=now() + timedelta(minutes=1)
    )
    for token in ("previous", trigger.webhook_token or ""):
        accepted = await receive_webhook(session, webhook_call(token, b"x"))
        execution = await session.get_one(ExecutionRecord, accepted.execution_id)
        assert (execution.trigger_id, accepted.is_repeated) == (trigger.id, False)
    await session.execute(sa.update(TriggerRecord).values(previous_token_expires_at=now()))
    with pytest.raises(NotFound):
        await receive_webhook(session, webhook_call("previous", b"x"))


def test_names_of_headers_have_any_case() -> None:
    assert webhook_call("t", b"", Headers({"Idempotency-Key": "k"})).has_key
    assert not webhook_call("t", b"").has_key
    assert webhook_call("t", b"\xff", Headers({"Content-Type": "a/b"})).given.payload == "data:a/b;base64,/w=="
