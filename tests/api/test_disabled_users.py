"""Users whom the operator has disabled, and servers that accept only API keys."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import Scope
from bloxserver.models.tables import Tier, UserRecord
from bloxserver.services.api_keys import NewKey, create_api_key
from bloxserver.services.user_accounts import create_user, disable_user
from tests import factories
from tests.api.contract import API, assert_problem
from tests.clerk import Clerk, clerk_authentication, override_settings

PATHS = [f"{API}/me", f"{API}/flows", f"{API}/executions", f"{API}/secrets"]
DISABLED = (403, "user_disabled", "The operator has disabled this account")


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


async def test_requests_of_a_disabled_user_are_refused(
    client: httpx.AsyncClient, session: AsyncSession, clerk: Clerk
) -> None:
    user = await factories.create_user(session, clerk_id="user_ada")
    _, key = await create_api_key(session, user.id, NewKey("key", [*Scope]))
    await session.commit()
    signed_in = [clerk.headers("user_ada"), {"Authorization": f"Bearer {key}"}]
    for path in PATHS:
        for headers in signed_in:
            assert (await client.get(path, headers=headers)).status_code == 200
    await disable_user(session, user)
    await session.commit()
    for path in PATHS:
        for headers in signed_in:
            assert_problem(await client.get(path, headers=headers), *DISABLED)
    user.disabled_at = None
    await session.commit()
    for path in PATHS:
        for headers in signed_in:
            assert (await client.get(path, headers=headers)).status_code == 200


async def test_server_that_accepts_only_keys_rejects_other_tokens(
    client: httpx.AsyncClient, session: AsyncSession
) -> None:
    user = await create_user(session, "ada@example.com", Tier.PRO)
    _, key = await create_api_key(session, user.id, NewKey("key", [Scope.READ]))
    await session.commit()
    with override_settings(AUTH="keys"):
        me = await client.get(f"{API}/me", headers={"Authorization": f"Bearer {key}"})
        assert (me.status_code, me.json()["clerkId"]) == (200, user.clerk_id)
        rejected = await client.get(f"{API}/me", headers={"Authorization": "Bearer a.b.c"})
        assert_problem(rejected, 401, "invalid_token", "This server accepts only API keys")
        missing = await client.get(f"{API}/me")
        assert_problem(missing, 401, "missing_token", "Missing authentication token")
    assert await session.scalar(sa.select(sa.func.count()).select_from(UserRecord)) == 1


async def test_new_user_has_the_default_tier(client: httpx.AsyncClient, clerk: Clerk) -> None:
    assert (await client.get(f"{API}/me", headers=clerk.headers("one"))).json()["tier"] == "free"
    with override_settings(DEFAULT_TIER="enterprise"):
        assert (await client.get(f"{API}/me", headers=clerk.headers("two"))).json()["tier"] == "enterprise"
        assert (await client.get(f"{API}/me", headers=clerk.headers("one"))).json()["tier"] == "free"
