"""Limits and key rotation of signing secrets. The rest is tested through the API."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.encryption import SecretCipher
from bloxserver.errors import Conflict
from bloxserver.models.database import Database
from bloxserver.models.tables import SigningSecretRecord, TriggerRecord
from bloxserver.services.secrets import RotatedBatch
from bloxserver.services.signing_secrets import (
    MAX_SECRETS,
    create_signing_secret,
    read_signing_secrets,
    rotate_stale_signing_secrets,
)
from tests import factories

OLD = SecretCipher(["old-key-of-an-operator-7c1f0e5b2a"])
NEW = SecretCipher(["new-key-of-an-operator-93d4a86b1f"])
BOTH = SecretCipher(["new-key-of-an-operator-93d4a86b1f", "old-key-of-an-operator-7c1f0e5b2a"])


async def webhook(session: AsyncSession) -> tuple[UUID, TriggerRecord]:
    user = await factories.create_user(session)
    return user.id, await factories.create_trigger(session, await factories.create_flow(session, user))


async def test_limit_is_exact_with_concurrent_requests(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user_id, trigger = await webhook(session)

    async def create() -> bool:
        async with live_database.transaction() as session:
            try:
                await create_signing_secret(session, NEW, user_id, trigger.flow_id, trigger.id, None)
            except Conflict:
                return False
            return True

    assert sum(await asyncio.gather(*(create() for _ in range(6)))) == MAX_SECRETS


async def test_rotation_encrypts_with_the_first_key(session: AsyncSession) -> None:
    secrets = {}
    for _ in range(3):
        user_id, trigger = await webhook(session)
        _, secret = await create_signing_secret(session, OLD, user_id, trigger.flow_id, trigger.id, None)
        secrets[user_id, trigger.id] = secret
    session.add(SigningSecretRecord(trigger_id=trigger.id, hint="", ciphertext="v1.00000000.x"))
    await session.flush()
    batches = [await rotate_stale_signing_secrets(session, BOTH, 2)]
    while batches[-1].last_id is not None:
        batches.append(await rotate_stale_signing_secrets(session, BOTH, 2, batches[-1].last_id))
    assert (sum(batch.rotated for batch in batches), sum(batch.unreadable for batch in batches)) == (3, 1)
    for (user_id, trigger_id), secret in secrets.items():
        assert await read_signing_secrets(session, NEW, user_id, trigger_id) == [secret]
        assert await read_signing_secrets(session, OLD, user_id, trigger_id) == []
    assert await rotate_stale_signing_secrets(session, BOTH, 2) == RotatedBatch(0, 1, None)


@pytest.mark.parametrize("cipher", [None, NEW])
async def test_secrets_that_cannot_be_decrypted_are_left_out(
    session: AsyncSession, cipher: SecretCipher | None
) -> None:
    user_id, trigger = await webhook(session)
    await create_signing_secret(session, OLD, user_id, trigger.flow_id, trigger.id, None)
    assert await read_signing_secrets(session, cipher, user_id, trigger.id) == []
