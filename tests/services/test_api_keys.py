"""Limits and uses of API keys. The rest is tested through the API."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from bloxserver.api_key_format import hash_of
from bloxserver.clock import now
from bloxserver.errors import LimitReached, Unprocessable
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope
from bloxserver.models.tables import ApiKeyRecord
from bloxserver.queries.api_keys import find_access
from bloxserver.services.api_keys import NewKey, create_api_key, note_use
from tests import factories


async def test_limit_of_keys_is_exact_with_concurrent_requests(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session, limits={"api_keys": 3})

    async def create() -> bool:
        async with live_database.transaction() as session:
            try:
                await create_api_key(session, user.id, NewKey("key", [Scope.READ]))
            except LimitReached:
                return False
            return True

    created = await asyncio.gather(*(create() for _ in range(8)))
    assert sum(created) == 3
    async with live_database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(ApiKeyRecord)) == 3


async def test_key_that_expires_now_is_refused(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session)
        with pytest.raises(Unprocessable) as raised:
            await create_api_key(session, user.id, NewKey("key", [Scope.READ], expires_at=now()))
    assert raised.value.details == {"body.expiresAt": "Must be in the future"}


async def test_concurrent_uses_are_written_once(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session)
        _, key = await create_api_key(session, user.id, NewKey("key", [Scope.READ]))
        await session.commit()
        access = await find_access(session, hash_of(key))
    assert access is not None

    async def use(number: int) -> None:
        async with live_database.transaction() as session:
            assert await note_use(session, access, f"10.0.0.{number}")

    await asyncio.gather(*(use(number) for number in range(8)))
    async with live_database.sessions() as session:
        first = (await session.execute(sa.select(ApiKeyRecord.last_used_at, ApiKeyRecord.last_used_address))).one()
    assert first.last_used_address is not None
    await use(99)
    async with live_database.sessions() as session:
        again = (await session.execute(sa.select(ApiKeyRecord.last_used_at, ApiKeyRecord.last_used_address))).one()
    assert again == first


async def test_use_within_a_minute_needs_no_statement(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session)
        _, key = await create_api_key(session, user.id, NewKey("key", [Scope.READ]))
        await session.execute(sa.update(ApiKeyRecord).values(last_used_at=now() - timedelta(seconds=59)))
        access = await find_access(session, hash_of(key))
        assert access is not None
        assert not await note_use(session, access, "10.0.0.1")
