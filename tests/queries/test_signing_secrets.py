"""Reading signing secrets."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.tables import SigningSecretRecord
from bloxserver.queries.signing_secrets import read_signing_secret, read_signing_secrets
from tests import factories


async def test_secrets_of_a_webhook_are_read_oldest_first(session: AsyncSession) -> None:
    user, other = await factories.create_user(session), await factories.create_user(session)
    flow = await factories.create_flow(session, user)
    webhook, another = await factories.create_trigger(session, flow), await factories.create_trigger(session, flow)
    for trigger, hint in ((webhook, "1"), (another, "x"), (webhook, "2")):
        session.add(SigningSecretRecord(trigger_id=trigger.id, hint=hint, ciphertext=""))
        await session.flush()
    rows = await read_signing_secrets(session, user.id, flow.id, webhook.id)
    assert [row.hint for row in rows] == ["1", "2"]
    assert (await read_signing_secret(session, user.id, flow.id, webhook.id, rows[0].id)).hint == "1"
    for user_id, trigger_id, secret_id in (
        (other.id, webhook.id, rows[0].id),
        (user.id, another.id, rows[0].id),
        (user.id, webhook.id, uuid4()),
    ):
        with pytest.raises(NotFound):
            await read_signing_secret(session, user_id, flow.id, trigger_id, secret_id)
