"""Reading API keys."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api_key_format import hash_of, new_key
from bloxserver.clock import now
from bloxserver.models.enums import Scope
from bloxserver.models.tables import ApiKeyRecord
from bloxserver.queries.api_keys import find_access, read_api_keys
from bloxserver.services.api_keys import NewKey, create_api_key
from tests import factories


async def test_access_is_found_by_the_hash_of_the_key(session: AsyncSession) -> None:
    user = await factories.create_user(session)
    flow, other = await factories.create_flow(session, user), await factories.create_flow(session, user)
    expires_at = now() + timedelta(days=1)
    row, key = await create_api_key(session, user.id, NewKey("key", [Scope.RUN, Scope.READ], [flow.id], expires_at))
    access = await find_access(session, hash_of(key))
    assert access is not None
    assert (access.id, access.user_id, access.clerk_id) == (row.id, user.id, user.clerk_id)
    assert access.scopes == {"read", "run"}
    assert (access.expires_at, access.last_used_at) == (expires_at, None)
    assert (access.reaches(flow.id), access.reaches(other.id)) == (True, False)
    assert await find_access(session, hash_of(new_key())) is None


async def test_keys_of_the_user_are_read_newest_first(session: AsyncSession) -> None:
    users = [await factories.create_user(session) for _ in range(2)]
    for number in range(3):
        for user in users:
            await create_api_key(session, user.id, NewKey(f"key {number}", [Scope.READ]))
    moment = now()
    for number in range(3):
        wanted = sa.update(ApiKeyRecord).where(ApiKeyRecord.name == f"key {number}")
        await session.execute(wanted.values(created_at=moment + timedelta(seconds=number)))
    names = [key.name for key in await read_api_keys(session, users[0].id)]
    assert names == ["key 2", "key 1", "key 0"]
