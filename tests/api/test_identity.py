"""The user of a request: the development user, or the user of a Clerk token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import StaticPool

from bloxserver.api.dependencies import AuthenticatedUser, OptionalUser
from bloxserver.api.errors import install_error_handlers
from bloxserver.api.main import app
from bloxserver.clients.clerk import get_verifier
from bloxserver.models.database import Base, Database, get_db
from bloxserver.models.tables import FlowRecord, Tier, UserRecord
from bloxserver.settings import get_settings
from tests import factories
from tests.api.contract import API, assert_problem, covers
from tests.clerk import Clerk, clerk_authentication, override_settings
from tests.jwks_server import JwksServer, Mode, SigningKey, claims

SUBJECT = "user_2NNEqL2nrIRdJ194ndJqAHwEfxC"


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


@pytest.fixture
async def echo(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[httpx.AsyncClient]:
    """A third-party app that returns the user that the dependencies provide."""
    other = FastAPI()
    install_error_handlers(other)

    @other.get("/user")
    async def user(user: AuthenticatedUser) -> dict[str, Any]:
        return {"clerk_id": user.clerk_id, "tier": user.tier, "email": user.email, "payload": user.clerk_payload}

    @other.get("/optional")
    async def optional(user: OptionalUser) -> str | None:
        return user.clerk_id if user else None

    async def override() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session
            await session.commit()

    other.dependency_overrides[get_db] = override
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=other), base_url="http://test") as client:
        yield client


async def users(session: AsyncSession) -> list[UserRecord]:
    return list(await session.scalars(sa.select(UserRecord).execution_options(populate_existing=True)))


class TestDevelopmentUser:
    @covers("identity.dev", "identity.dev.user")
    async def test_every_request_is_the_development_user(
        self, client: httpx.AsyncClient, echo: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        for header in (None, "", "Bearer", "Bearer garbage", "Basic eDp5", "Bearer a.b.c", "é".encode("latin-1")):
            headers = {} if header is None else {"Authorization": header}
            response = await client.get(f"{API}/flows", headers=headers)  # type: ignore[arg-type]
            assert (response.status_code, response.json()["total"]) == (200, 0)
        user = (await users(session))[0]
        assert len(await users(session)) == 1
        assert (user.clerk_id, user.email, user.name, user.tier) == (
            "dev_user_001",
            "dev@localhost",
            "Dev User",
            Tier.PRO,
        )
        assert (await echo.get("/user")).json() == {
            "clerk_id": "dev_user_001",
            "tier": "pro",
            "email": "dev@localhost",
            "payload": {"sub": "dev_user_001", "dev": True},
        }

    @covers("identity.dev")
    @pytest.mark.parametrize("env", ["test", "staging", "production"])
    async def test_development_user_exists_in_development_only(
        self, client: httpx.AsyncClient, session: AsyncSession, env: str
    ) -> None:
        with override_settings(ENV=env):
            response = await client.get(f"{API}/flows")
        assert_problem(response, 401, "missing_token", "Missing authentication token")
        assert await users(session) == []

    @covers("testers.no-cache")
    async def test_development_user_is_created_in_each_database(self, client: httpx.AsyncClient) -> None:
        mine = (await client.post(f"{API}/flows", json={"name": "A flow"})).json()
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        async def another_database() -> AsyncIterator[AsyncSession]:
            async with AsyncSession(engine) as session:
                yield session
                await session.commit()

        app.dependency_overrides[get_db] = another_database
        assert (await client.get(f"{API}/flows/{mine['id']}")).status_code == 404
        other = (await client.post(f"{API}/flows", json={"name": "A flow"})).json()
        async with AsyncSession(engine) as session:
            assert [str(user.id) for user in await users(session)] == [other["userId"]]
        assert other["userId"] != mine["userId"]
        await engine.dispose()


class TestToken:
    @covers("identity.missing")
    async def test_missing_token_gets_401(self, client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession) -> None:
        token = clerk.headers(SUBJECT)["Authorization"].removeprefix("Bearer ")
        for header in (None, "", "Bearer", "Bearer  ", token, f"Basic {token}", f"Token {token}", "Bearertoken"):
            headers = {} if header is None else {"Authorization": header}
            response = await client.get(f"{API}/flows", headers=headers)
            assert_problem(response, 401, "missing_token", "Missing authentication token")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/health", "/health/live", "/health/ready"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post("/webhooks/unknown")).status_code == 404
        assert await users(session) == []

    @covers("identity.token", "identity.expired", "identity.invalid")
    async def test_invalid_token_is_rejected_with_a_reason(
        self, client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession
    ) -> None:
        def signed(key: SigningKey = clerk.key, /, alg: str = "RS256", **changes: Any) -> str:
            return key.sign(claims(clerk.issuer, **changes), alg=alg)

        past, future = int(time.time()) - 100, int(time.time()) + 100
        other = SigningKey(clerk.key.kid, pair="another")
        invalid = {
            "wrong issuer": signed(iss="https://evil.example"),
            "not valid yet": signed(nbf=future),
            "missing claim sub": signed(sub=None),
            "missing claim exp": signed(exp=None),
            "invalid claim sub": signed(sub=["x"]),
            "signature does not match": signed(other),
            "unknown signing key": signed(SigningKey("ins_unknown")),
            "algorithm is not RS256": signed(alg="HS256"),
            "malformed": "garbage",
            "too long": "x" * 9000,
        }
        for reason, token in invalid.items():
            response = await client.get(f"{API}/flows", headers={"Authorization": f"Bearer {token}"})
            assert_problem(response, 401, "invalid_token", f"Invalid token: {reason}")
            assert response.headers["www-authenticate"].startswith("Bearer")
        expired = signed(exp=past, iat=past - 60, nbf=past - 60)
        response = await client.get(f"{API}/flows", headers={"Authorization": f"Bearer {expired}"})
        assert_problem(response, 401, "token_expired", "Token has expired")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert await users(session) == []
        good = await client.get(f"{API}/flows", headers={"Authorization": f"bearer {signed()}"})
        assert good.status_code == 200

    @covers("identity.audience")
    async def test_audience_is_checked_if_configured(self, client: httpx.AsyncClient, clerk: Clerk) -> None:
        assert (await client.get(f"{API}/me", headers=clerk.headers(SUBJECT, aud="them"))).status_code == 200
        with override_settings(CLERK_AUDIENCE="us"):
            for audience, status in {"us": 200, "them": 401, None: 401}.items():
                response = await client.get(f"{API}/me", headers=clerk.headers(SUBJECT, aud=audience))
                assert response.status_code == status
            assert response.json()["message"] == "Invalid token: missing claim aud"
            await get_verifier(get_settings()).aclose()

    @covers("identity.no-keys")
    async def test_unavailable_keys_get_503(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        key = SigningKey()
        async with JwksServer(key) as server:
            gone = server.issuer
            for mode in (Mode.ERROR, Mode.HTML, Mode.REDIRECT):
                server.mode = mode
                await assert_no_keys(client, server.issuer, key)
                assert server.fetches > 0
        await assert_no_keys(client, gone, key)
        assert await users(session) == []


async def assert_no_keys(client: httpx.AsyncClient, issuer: str, key: SigningKey) -> None:
    with override_settings(CLERK_ISSUER=issuer):
        headers = {"Authorization": f"Bearer {key.sign(claims(issuer))}"}
        response = await client.get(f"{API}/flows", headers=headers)
        message = response.json()["message"]
        assert_problem(response, 503, "identity_provider_unavailable", message)
        assert response.headers["retry-after"] == "5"
        assert issuer not in message
        await get_verifier(get_settings()).aclose()


class TestFirstToken:
    @covers("identity.first-token", "identity.token")
    async def test_first_token_creates_the_user(
        self, client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession
    ) -> None:
        created = (await client.post(f"{API}/flows", json={"name": "A flow"}, headers=clerk.headers(SUBJECT))).json()
        user = (await users(session))[0]
        assert (user.clerk_id, user.email, user.name) == (SUBJECT, "ada@example.com", "Ada Lovelace")
        assert (user.avatar_url, user.tier) == ("https://img.clerk.com/ada.png", Tier.FREE)
        assert created["userId"] == str(user.id)
        me = (await client.get(f"{API}/me", headers=clerk.headers(SUBJECT, email="new@example.com"))).json()
        assert (me["id"], me["clerkId"], me["tier"]) == (str(user.id), SUBJECT, "free")
        other = clerk.headers("user_other")
        assert (await client.get(f"{API}/flows", headers=other)).json()["total"] == 0
        assert (await client.get(f"{API}/flows/{created['id']}", headers=other)).status_code == 404
        assert len(await users(session)) == 2

    @covers("identity.first-token")
    @pytest.mark.parametrize("value", [None, 7, True, [], {"a": 1}, "", "\0", "\ud800", "x" * 1000], ids=ascii)
    async def test_unusable_optional_claims_are_ignored(
        self, client: httpx.AsyncClient, clerk: Clerk, session: AsyncSession, value: object
    ) -> None:
        odd = dict.fromkeys(("email", "name", "image_url", "dev", "tier"), value)
        response = await client.get(f"{API}/me", headers=clerk.headers(SUBJECT, **odd))
        assert response.status_code == 200
        user = (await users(session))[0]
        assert user.email == ("x" * 320 if value == "x" * 1000 else f"{SUBJECT}@unknown")
        assert user.name == ("x" * 255 if value == "x" * 1000 else None)
        assert user.avatar_url == (value if value == "x" * 1000 else None)
        assert user.tier is Tier.FREE

    @covers("identity.first-token.concurrency", "testers.lost-race")
    @pytest.mark.parametrize("count", [8, 50])
    async def test_concurrent_first_tokens_create_one_user(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk, count: int
    ) -> None:
        headers = clerk.headers(SUBJECT)
        reads = [live_client.get(f"{API}/me", headers=headers) for _ in range(count - 2)]
        writes = [live_client.post(f"{API}/flows", json={"name": "A"}, headers=headers) for _ in range(2)]
        responses = await asyncio.gather(*writes, *reads)
        assert sorted(response.status_code for response in responses) == [200] * (count - 2) + [201, 403]
        async with live_database.transaction() as session:
            assert len(await users(session)) == 1
            assert await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord)) == 1
        assert len({response.json()["id"] for response in responses[2:]}) == 1


class TestOptionalUser:
    async def test_optional_user_is_none_without_a_valid_token(
        self, echo: httpx.AsyncClient, clerk: Clerk, session: AsyncSession
    ) -> None:
        assert (await echo.get("/optional")).json() is None
        assert (await echo.get("/optional", headers={"Authorization": "Bearer garbage"})).json() is None
        assert await users(session) == []
        assert (await echo.get("/optional", headers=clerk.headers(SUBJECT))).json() == SUBJECT
        user = await factories.create_user(session, clerk_id="user_known", tier=Tier.ENTERPRISE)
        assert isinstance(user.id, UUID)
        assert (await echo.get("/user", headers=clerk.headers("user_known"))).json()["tier"] == "enterprise"
