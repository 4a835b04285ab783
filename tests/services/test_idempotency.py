"""Idempotency keys: expiry, and what is stored. The rest is tested through the API."""

from __future__ import annotations

from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.tables import IdempotencyKeyRecord
from bloxserver.services.idempotency import KEPT, KeyReused, claim_key, set_result

KEY = "canary-7b3d"


async def test_result_of_the_first_request_is_returned(session: AsyncSession) -> None:
    owner = uuid4()
    assert await claim_key(session, owner, KEY, b"request") is None
    await set_result(session, owner, KEY, "made")
    assert await claim_key(session, owner, KEY, b"request") == "made"
    with pytest.raises(KeyReused):
        await claim_key(session, owner, KEY, b"another request")
    assert await claim_key(session, uuid4(), KEY, b"another request") is None


async def test_expired_key_is_replaced(session: AsyncSession) -> None:
    owner = uuid4()
    assert await claim_key(session, owner, KEY, b"request", "first") is None
    await session.execute(sa.update(IdempotencyKeyRecord).values(created_at=now() - KEPT))
    assert await claim_key(session, owner, KEY, b"another request", "second") is None
    assert await claim_key(session, owner, KEY, b"another request") == "second"


async def test_neither_key_nor_request_can_be_read_or_guessed(session: AsyncSession) -> None:
    for owner in (uuid4(), uuid4()):
        await claim_key(session, owner, f"{KEY}-{owner}", b"secret")
    rows = (await session.scalars(sa.select(IdempotencyKeyRecord))).all()
    assert len({row.request_hash for row in rows}) == 2  # of the same request: the hash depends on the key
    assert not any(KEY.encode() in row.key_hash + row.request_hash for row in rows)
