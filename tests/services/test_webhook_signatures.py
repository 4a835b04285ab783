"""The statements that a verification executes. The rest is tested through the API."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.queries.triggers import read_webhook
from bloxserver.services.webhook_signatures import InvalidSignature, verify_signature
from tests import factories
from tests.statements import count_statements


@pytest.mark.parametrize(
    ("config", "cost"),
    [
        ({}, 0),
        ({"signature": {"scheme": "unknown"}}, 0),
        ({"signature": {"scheme": "github"}}, 1),
        ({"signature": {"scheme": "github", "secret": "SHOP"}}, 2),
    ],
)
async def test_only_verification_reads_secrets(
    session: AsyncSession, database_engine: AsyncEngine, config: dict[str, object], cost: int
) -> None:
    flow = await factories.create_flow(session, await factories.create_user(session))
    trigger = await factories.create_trigger(session, flow, config=config)
    webhook = await read_webhook(session, trigger.webhook_token or "")
    with count_statements(database_engine) as statements:
        if config:
            with pytest.raises(InvalidSignature):
                await verify_signature(session, webhook, b"", {})
        else:
            assert await verify_signature(session, webhook, b"", {}) is None
    assert len(statements) == cost
