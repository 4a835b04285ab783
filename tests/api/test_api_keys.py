"""API keys: creation, use, expiry and revocation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver import plans
from bloxserver.api import api_key_sign_in
from bloxserver.api.main import create_app
from bloxserver.api_key_format import hash_of, new_key
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope
from bloxserver.models.tables import ApiKeyRecord, Tier, UserRecord
from bloxserver.services.api_keys import NewKey, create_api_key, revoke_api_key
from tests import factories
from tests.api.contract import API, assert_problem, covers
from tests.clerk import Clerk, clerk_authentication, override_settings
from tests.database_override import override_database
from tests.statements import count_statements

OWNER = "user_owner"
INVALID = (401, "invalid_api_key", "The API key is unknown, revoked or expired")


@pytest.fixture(autouse=True)
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


@pytest.fixture
async def owner(session: AsyncSession) -> UserRecord:
    return await factories.create_user(session, clerk_id=OWNER, tier=Tier.PRO)


@pytest.fixture
def headers(clerk: Clerk, owner: UserRecord) -> dict[str, str]:
    return clerk.headers(OWNER)


async def create(client: httpx.AsyncClient, headers: dict[str, str], **members: Any) -> dict[str, Any]:
    body = {"name": "Deployment", "scopes": ["read"]} | members
    response = await client.post(f"{API}/api-keys", json=body, headers=headers)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def bearer(key: dict[str, Any] | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key if isinstance(key, str) else key['key']}"}


@covers("api-keys.list", "api-keys.create")
async def test_key_is_returned_once_and_stored_as_a_hash(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str]
) -> None:
    created = await create(client, headers, scopes=["run", "read", "run"])
    key = created.pop("key")
    assert created["scopes"] == ["read", "run"]
    assert created["hint"] == f"blx_live_…{key[-4:]}"
    assert (created["flowIds"], created["expiresAt"], created["lastUsedAt"]) == (None, None, None)
    assert (await client.get(f"{API}/api-keys", headers=headers)).json() == [created]
    row = (await session.execute(sa.select(ApiKeyRecord.__table__))).one()
    assert row.key_hash == hash_of(key)
    assert key not in repr(row)


@covers("api-keys.sign-in")
async def test_key_signs_its_user_in(client: httpx.AsyncClient, headers: dict[str, str], owner: UserRecord) -> None:
    created = await create(client, headers)
    for _ in range(2):
        me = (await client.get(f"{API}/me", headers=bearer(created))).json()
        assert (me["id"], me["clerkId"], me["tier"]) == (str(owner.id), OWNER, "pro")
        assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200


async def test_change_of_the_tier_applies_to_the_next_request(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], owner: UserRecord
) -> None:
    created = await create(client, headers)
    assert (await client.get(f"{API}/me", headers=bearer(created))).json()["tier"] == "pro"
    owner.tier = Tier.FREE
    await session.commit()
    assert (await client.get(f"{API}/me", headers=bearer(created))).json()["tier"] == "free"


@covers("api-keys.revoke")
async def test_revoked_key_is_rejected_at_once_by_the_process_that_revoked_it(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    created = await create(client, headers)
    assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200
    path = f"{API}/api-keys/{created['id']}"
    assert (await client.delete(path, headers=headers)).status_code == 204
    assert_problem(await client.get(f"{API}/flows", headers=bearer(created)), *INVALID)
    assert_problem(await client.delete(path, headers=headers), 404, "api_key_not_found", "API key not found")
    assert (await client.get(f"{API}/api-keys", headers=headers)).json() == []


async def test_key_that_another_process_revoked_is_rejected_after_a_second(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    time = 1000.0
    monkeypatch.setattr(api_key_sign_in, "monotonic", lambda: time)
    created = await create(client, headers)
    assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200
    await session.execute(sa.delete(ApiKeyRecord))
    await session.commit()
    time += 1.0
    assert_problem(await client.get(f"{API}/flows", headers=bearer(created)), *INVALID)


async def test_key_of_a_deleted_user_is_rejected_although_it_was_read_before(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], owner: UserRecord
) -> None:
    created = await create(client, headers)
    paths = [f"{API}/flows", f"{API}/me", f"{API}/executions"]
    for path in paths:
        assert (await client.get(path, headers=bearer(created))).status_code == 200
    await session.execute(sa.delete(UserRecord).where(UserRecord.id == owner.id))
    await session.commit()
    for path in paths:
        assert_problem(await client.get(path, headers=bearer(created)), *INVALID)
    assert await session.scalar(sa.select(sa.func.count()).select_from(UserRecord)) == 0


async def test_key_is_rejected_from_its_expiry_on(
    client: httpx.AsyncClient, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expiry = now() + timedelta(hours=1)
    created = await create(client, headers, expiresAt=expiry.isoformat())
    assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200
    monkeypatch.setattr(api_key_sign_in, "now", lambda: expiry)
    assert_problem(await client.get(f"{API}/flows", headers=bearer(created)), *INVALID)
    api_key_sign_in.forget_keys()
    assert_problem(await client.get(f"{API}/flows", headers=bearer(created)), *INVALID)


@pytest.mark.parametrize(
    "key",
    [
        "blx_live_0123456789ABCDEFGHIJKLMNOPQRST4PMbyp",
        "blx_live_",
        "blx_live_" + "a" * 36,
        "blx_live_" + "é" * 36,
        "blx_live_x y",
    ],
)
async def test_unknown_key_is_rejected(client: httpx.AsyncClient, headers: dict[str, str], key: str) -> None:
    response = await client.get(f"{API}/flows", headers={b"Authorization": f"Bearer {key}".encode()})
    assert_problem(response, *INVALID)
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


async def test_malformed_key_needs_no_statement(
    client: httpx.AsyncClient, headers: dict[str, str], database_engine: AsyncEngine
) -> None:
    with count_statements(database_engine) as statements:
        assert_problem(await client.get(f"{API}/flows", headers=bearer("blx_live_" + "a" * 36)), *INVALID)
    assert statements == []


async def test_hot_route_executes_one_statement_while_the_key_is_known(
    client: httpx.AsyncClient, headers: dict[str, str], database_engine: AsyncEngine
) -> None:
    created = await create(client, headers)
    await client.get(f"{API}/flows", headers=bearer(created))
    with count_statements(database_engine) as statements:
        assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200
    assert len(statements) == 1


async def test_last_use_is_written_at_most_once_a_minute(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str]
) -> None:
    created = await create(client, headers)

    async def last_use() -> tuple[str, str]:
        api_key_sign_in.forget_keys()
        assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200
        (key,) = (await client.get(f"{API}/api-keys", headers=headers)).json()
        return key["lastUsedAt"], key["lastUsedAddress"]

    started = now()
    first = await last_use()
    assert first[1] == "127.0.0.1"
    assert await last_use() == first
    await session.execute(sa.update(ApiKeyRecord).values(last_used_at=started - timedelta(seconds=61)))
    await session.commit()
    assert (await last_use())[0] > first[0]


async def test_use_is_stored_although_the_request_fails(
    client: httpx.AsyncClient, headers: dict[str, str], owner: UserRecord
) -> None:
    created = await create(client, headers)
    assert (await client.post(f"{API}/flows", json={"name": "x"}, headers=bearer(created))).status_code == 403
    (key,) = (await client.get(f"{API}/api-keys", headers=headers)).json()
    assert key["lastUsedAt"] is not None


@pytest.mark.parametrize(
    ("creator", "new", "code"),
    [
        ({"scopes": ["admin"]}, {"scopes": ["read"]}, "missing_scope"),
        ({"scopes": ["admin", "read"]}, {"scopes": ["admin", "read", "write"]}, "missing_scope"),
        ({"scopes": ["admin"], "flowIds": True}, {"scopes": ["admin"]}, "flow_restricted"),
        ({"scopes": ["admin"], "expiresAt": "2100-01-01T00:00:00Z"}, {"scopes": ["admin"]}, "expiry_restricted"),
        (
            {"scopes": ["admin"], "expiresAt": "2100-01-01T00:00:00Z"},
            {"scopes": ["admin"], "expiresAt": "2100-01-01T00:00:01Z"},
            "expiry_restricted",
        ),
    ],
)
async def test_key_creates_only_keys_with_no_more_access(
    client: httpx.AsyncClient,
    session: AsyncSession,
    headers: dict[str, str],
    owner: UserRecord,
    creator: dict[str, Any],
    new: dict[str, Any],
    code: str,
) -> None:
    if "flowIds" in creator:
        creator = creator | {"flowIds": [str((await factories.create_flow(session, owner)).id)]}
    used = await create(client, headers, **creator)
    refused = await client.post(f"{API}/api-keys", json={"name": "More"} | new, headers=bearer(used))
    assert (refused.status_code, refused.json()["code"]) == (403, code)
    same = {name: used[name] for name in ("scopes", "flowIds", "expiresAt")}
    equal = await create(client, bearer(used), **same)
    assert {name: equal[name] for name in same} == same


async def test_restricted_key_creates_keys_for_its_flows_only(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], owner: UserRecord
) -> None:
    flows = [str((await factories.create_flow(session, owner)).id) for _ in range(3)]
    used = await create(client, headers, scopes=["admin"], flowIds=flows[:2])
    await create(client, bearer(used), scopes=["admin"], flowIds=flows[:1])
    body = {"name": "More", "scopes": ["admin"], "flowIds": flows[1:]}
    refused = await client.post(f"{API}/api-keys", json=body, headers=bearer(used))
    assert (refused.status_code, refused.json()["code"]) == (403, "flow_restricted")


async def test_restricted_key_sees_the_usage_of_its_flows(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], owner: UserRecord
) -> None:
    flows = [await factories.create_flow(session, owner) for _ in range(2)]
    for flow in flows:
        await factories.create_execution(session, flow)
    used = await create(client, headers, scopes=["read"], flowIds=[str(flows[1].id)])
    page = (await client.get(f"{API}/usage/flows", headers=bearer(used))).json()
    assert [item["flowId"] for item in page["items"]] == [str(flows[1].id)]


async def test_flow_of_another_user_cannot_be_in_a_restriction(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], owner: UserRecord
) -> None:
    stranger = await factories.create_user(session)
    flows = [str((await factories.create_flow(session, user)).id) for user in (owner, stranger)]
    body = {"name": "Theirs", "scopes": ["read"], "flowIds": flows}
    response = await client.post(f"{API}/api-keys", json=body, headers=headers)
    assert_problem(response, 404, "flow_not_found", "Flow not found")
    assert await session.scalar(sa.select(sa.func.count()).select_from(ApiKeyRecord)) == 0


@pytest.mark.parametrize(
    "members",
    [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"scopes": None},
        {"scopes": ["read"] * 11},
        {"name": ""},
        {"name": "x" * 101},
        {"flowIds": []},
        {"flowIds": ["x"]},
        {"expiresAt": "2001-01-01T00:00:00Z"},
        {"expiresAt": "2100-01-01T00:00:00"},
        {"expiresAt": "soon"},
        {"expiresAt": 10**30},
        {"expiresAt": "9999-12-31T23:59:59-12:00"},
        {"expiresAt": "0001-01-01T00:00:00+12:00"},
    ],
    ids=str,
)
async def test_invalid_key_is_refused_with_the_field(
    client: httpx.AsyncClient, headers: dict[str, str], members: dict[str, Any]
) -> None:
    body = {"name": "Bad", "scopes": ["read"]} | members
    response = await client.post(f"{API}/api-keys", json=body, headers=headers)
    assert response.status_code == 422
    (name,) = members
    assert any(name in field for field in response.json()["details"])


async def test_number_of_keys_is_limited_by_the_plan(
    client: httpx.AsyncClient, session: AsyncSession, headers: dict[str, str], owner: UserRecord
) -> None:
    owner.limits = {"api_keys": 1}
    await session.commit()
    created = await create(client, headers)
    response = await client.post(f"{API}/api-keys", json={"name": "Two", "scopes": ["read"]}, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "api_keys_limit_reached")
    assert response.json()["details"] == {"name": "api_keys", "limit": 1, "used": 1}
    await client.delete(f"{API}/api-keys/{created['id']}", headers=headers)
    await create(client, headers)


async def test_number_of_known_keys_is_bounded(
    client: httpx.AsyncClient, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_key_sign_in, "MAX_KNOWN", 2)
    created = [await create(client, headers) for _ in range(3)]
    for each in created:
        assert (await client.get(f"{API}/flows", headers=bearer(each))).status_code == 200
    assert [*api_key_sign_in._known] == [hash_of(each["key"]) for each in created[1:]]


async def test_requests_with_a_key_have_a_limit_of_their_own(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        plans.PLANS, "pro", replace(plans.PLANS["pro"], requests_per_minute=100, key_requests_per_minute=2)
    )
    async with live_database.sessions() as session:
        user = await factories.create_user(session, tier=Tier.PRO)
        keys = [(await create_api_key(session, user.id, NewKey("k", [Scope.READ])))[1] for _ in range(2)]
        await session.commit()
    with override_settings(RATE_LIMITS="1"):
        app = create_app()
        app.state.rate_limiter.__init__(lambda: 6029.0)
        with override_database(app, live_database):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                statuses = [
                    (await client.get(f"{API}/flows", headers=bearer(key))).status_code for key in [keys[0]] * 4 + keys
                ]
                limited = await client.get(f"{API}/me", headers=bearer(keys[0]))
    assert statuses == [200, 200, 429, 429, 429, 200]
    assert limited.json()["details"]["name"] == "key_requests_per_minute"
    assert '"api_key";q=2' in limited.headers["RateLimit-Policy"]


async def test_development_user_is_signed_in_whatever_the_key(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with override_settings(CLERK_ISSUER=""):
        me = (await client.get(f"{API}/me", headers=bearer(new_key()))).json()
    assert me["clerkId"] == "dev_user_001"


async def test_keys_of_another_user_cannot_be_revoked(session: AsyncSession, owner: UserRecord) -> None:
    stranger = await factories.create_user(session)
    row, _ = await create_api_key(session, owner.id, NewKey("k", [Scope.READ]))
    with pytest.raises(Exception, match="API key not found"):
        await revoke_api_key(session, row.id, user_id=stranger.id)
    await revoke_api_key(session, row.id, user_id=owner.id)


async def test_request_is_answered_although_its_use_cannot_be_stored(
    client: httpx.AsyncClient,
    headers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a standby that was not promoted yet."""
    created = await create(client, headers)

    async def refuse(*arguments: object) -> bool:
        raise OSError("read-only")

    monkeypatch.setattr(api_key_sign_in, "note_use", refuse)
    assert (await client.get(f"{API}/flows", headers=bearer(created))).status_code == 200
    (key,) = (await client.get(f"{API}/api-keys", headers=headers)).json()
    assert key["lastUsedAt"] is None
