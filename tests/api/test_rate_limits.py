"""Rate limits over HTTP: what counts, and what a client learns about its limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from bloxserver import plans
from bloxserver.api.main import create_app
from bloxserver.api.rate_limits import sharing_counters
from bloxserver.errors import SettingsError
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowStatus, RateCounterRecord, TriggerType, UserRecord
from bloxserver.services import rate_limits
from bloxserver.services.rate_limits import RateLimiter
from bloxserver.services.users import DEV_CLAIMS, user_of_claims
from bloxserver.settings import Settings
from tests.clerk import Clerk, clerk_authentication, override_settings
from tests.database_override import override_database
from tests.factories import create_flow, create_trigger
from tests.redis_server import redis_server
from tests.statements import count_statements

ADDRESS_LIMIT = 60
INVALID = {"Authorization": "Bearer a.b.c"}


@pytest.fixture(autouse=True)
def _plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "ADDRESS_REQUESTS_PER_MINUTE", ADDRESS_LIMIT)
    monkeypatch.setitem(plans.PLANS, "pro", replace(plans.PLANS["pro"], requests_per_minute=5, webhooks_per_minute=3))
    monkeypatch.setitem(plans.PLANS, "free", replace(plans.FREE, requests_per_minute=2))


def clock() -> float:
    """A minute that does not end during a test."""
    return 6029.0


@pytest.fixture(scope="module")
def module_app() -> FastAPI:
    with override_settings(RATE_LIMITS="1"):
        return create_app()


@pytest.fixture
def app(module_app: FastAPI, live_database: Database) -> Iterator[FastAPI]:
    module_app.state.rate_limiter.__init__(clock)
    with override_database(module_app, live_database):
        yield module_app


def client_of(app: FastAPI, address: str = "10.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
async def limited(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def webhook(live_database: Database) -> str:
    """The path of a webhook of the development user."""
    async with live_database.transaction() as session:
        user = await user_of_claims(session, DEV_CLAIMS)
        flow = await create_flow(session, user, status=FlowStatus.RUNNING)
        await create_trigger(session, flow, type=TriggerType.WEBHOOK, webhook_token="the-token")
    return "/webhooks/the-token"


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


async def test_responses_describe_the_limits(limited: httpx.AsyncClient) -> None:
    response = await limited.get("/api/v1/flows")
    assert response.headers["RateLimit-Policy"] == '"address";q=60;w=60, "user";q=5;w=60'
    assert response.headers["RateLimit"] == '"address";r=59;t=31, "user";r=4;t=31'
    assert (await limited.get("/nowhere")).headers["RateLimit"] == '"address";r=58;t=31'


async def test_user_over_the_limit_gets_429(app: FastAPI, limited: httpx.AsyncClient) -> None:
    for _ in range(5):
        assert (await limited.get("/api/v1/flows")).status_code == 200
    async with client_of(app, "10.0.0.2") as elsewhere:
        for client in (limited, elsewhere):
            response = await client.post("/api/v1/flows", json={"name": "n"})
            assert response.status_code == 429
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["Retry-After"] == "31"
            assert '"user";r=0;t=31' in response.headers["RateLimit"]
            body = response.json()
            assert (body["code"], body["details"]["name"]) == ("rate_limited", "requests_per_minute")
            assert body["details"]["limit"] == 5
            assert body["message"].startswith("The limit of 5 requests per minute is reached (used: 6).")


async def test_changed_limit_applies_to_the_next_request(limited: httpx.AsyncClient, live_database: Database) -> None:
    await limited.get("/api/v1/flows")
    async with live_database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(limits={"requests_per_minute": 9}))
    response = await limited.get("/api/v1/flows")
    assert response.headers["RateLimit-Policy"] == '"address";q=60;w=60, "user";q=9;w=60'


async def test_refused_request_costs_no_statement(
    limited: httpx.AsyncClient, webhook: str, live_database: Database
) -> None:
    for _ in range(6):
        await limited.get("/api/v1/flows")
        await limited.post(webhook)
    with count_statements(live_database.engine) as statements:
        assert (await limited.get("/api/v1/flows")).status_code == 429
        assert (await limited.post(webhook)).status_code == 429
        assert (await limited.get(f"{webhook}/test")).status_code == 429
    assert statements == []


async def test_admitted_requests_write_no_counters(limited: httpx.AsyncClient, live_database: Database) -> None:
    with count_statements(live_database.engine) as statements:
        assert (await limited.get("/api/v1/flows")).status_code == 200
    assert not any("rate_counters" in statement for statement in statements)


async def test_users_have_limits_of_their_own_plans(
    clerk: Clerk, limited: httpx.AsyncClient, live_database: Database
) -> None:
    def list_flows(name: str) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(limited.get("/api/v1/flows", headers=clerk.headers(name)))

    assert [(await list_flows("a")).status_code for _ in range(3)] == [200, 200, 429]
    assert (await list_flows("b")).status_code == 200
    async with live_database.transaction() as session:
        await session.execute(sa.update(UserRecord).where(UserRecord.clerk_id == "b").values(tier="pro"))
    assert [(await list_flows("b")).status_code for _ in range(4)] == [200, 200, 200, 200]


async def test_overrides_of_a_user_apply(limited: httpx.AsyncClient, webhook: str, live_database: Database) -> None:
    async with live_database.transaction() as session:
        overrides = {"requests_per_minute": 7, "webhooks_per_minute": 1}
        await session.execute(sa.update(UserRecord).values(limits=overrides))
    assert '"user";q=7;' in (await limited.get("/api/v1/flows")).headers["RateLimit-Policy"]
    assert [(await limited.post(webhook)).status_code for _ in range(2)] == [200, 429]


async def test_webhook_over_the_limit_is_refused_before_its_body_is_read(
    app: FastAPI, limited: httpx.AsyncClient, webhook: str, live_database: Database
) -> None:
    statuses = [(await limited.post(webhook, json={})).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]

    received: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        received.append(1)
        yield b"{}"

    response = await limited.post(webhook, content=body())
    assert received == []
    assert response.status_code == 429
    assert response.json()["details"] == {"name": "webhooks_per_minute", "limit": 3, "used": 4}
    assert '"webhook";r=0;t=31' in response.headers["RateLimit"]
    async with live_database.transaction() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 3


@pytest.mark.parametrize("kind", ["webhook", "test", "sign-in"])
async def test_invalid_tokens_use_up_the_limit_of_the_address(
    app: FastAPI, clerk: Clerk, limited: httpx.AsyncClient, kind: str
) -> None:
    async def guess(number: int) -> httpx.Response:
        if kind == "webhook":
            return await limited.post(f"/webhooks/guess-{number}")
        if kind == "test":
            return await limited.get(f"/webhooks/guess-{number}/test")
        return await limited.get("/api/v1/flows", headers=INVALID)

    answers = [await guess(number) for number in range(4)]
    expected = 401 if kind == "sign-in" else 404
    assert [answer.status_code for answer in answers] == [expected] * 3 + [429]
    assert [answer.headers["RateLimit"] for answer in answers[:3]] == [
        '"address";r=40;t=31',
        '"address";r=20;t=31',
        '"address";r=0;t=31',
    ]
    assert answers[3].json()["details"]["name"] == "address_requests_per_minute"
    async with client_of(app, "10.0.0.2") as elsewhere:
        assert (await elsewhere.get("/")).status_code == 200


async def test_request_without_a_token_counts_once(clerk: Clerk, limited: httpx.AsyncClient) -> None:
    response = await limited.get("/api/v1/flows")
    assert (response.status_code, response.headers["RateLimit"]) == (401, '"address";r=59;t=31')


async def test_ipv6_addresses_of_a_network_share_a_limit(app: FastAPI) -> None:
    for number in range(ADDRESS_LIMIT):
        async with client_of(app, f"2001:db8::{number:x}") as client:
            assert (await client.get("/nowhere")).status_code == 404
    async with client_of(app, "2001:db8::ffff") as client:
        assert (await client.get("/nowhere")).status_code == 429
    async with client_of(app, "2001:db8:0:1::1") as client:
        assert (await client.get("/nowhere")).status_code == 404


async def test_probes_are_not_limited(limited: httpx.AsyncClient) -> None:
    for _ in range(ADDRESS_LIMIT + 1):
        await limited.get("/nowhere")
    assert (await limited.get("/nowhere")).status_code == 429
    for path in ("/health", "/health/live"):
        response = await limited.get(path)
        assert response.status_code == 200
        assert "RateLimit" not in response.headers
    assert (await limited.get("/metrics")).status_code == 404


async def test_browsers_may_read_the_headers(limited: httpx.AsyncClient) -> None:
    """Also those of a refused request."""
    origin = {"Origin": "http://localhost:3000"}
    for _ in range(ADDRESS_LIMIT):
        response = await limited.get("/nowhere", headers=origin)
    refused = await limited.get("/nowhere", headers=origin)
    assert (response.status_code, refused.status_code) == (404, 429)
    for each in (response, refused):
        assert each.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(
            each.headers["Access-Control-Expose-Headers"].split(", ")
        )


@pytest.mark.parametrize(
    ("env", "given", "limits"),
    [
        ("development", "", False),
        ("test", "", False),
        ("staging", "", True),
        ("production", "", True),
        ("development", "true", True),
        ("production", "false", False),
    ],
)
def test_limits_apply_in_production_unless_set(env: str, given: str, limits: bool) -> None:
    with override_settings(ENV=env, RATE_LIMITS=given):
        assert (create_app().state.rate_limiter is not None) == limits


async def test_development_user_is_not_limited_by_default(live_client: httpx.AsyncClient) -> None:
    answers = [await live_client.get("/api/v1/flows") for _ in range(7)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("RateLimit" in answer.headers for answer in answers)


async def test_server_shares_its_counters(live_database: Database, live_settings: Settings) -> None:
    """On SQLite there is one server, which shares none."""
    limiter = RateLimiter(clock)
    limiter.count("user", "u", 5)

    async def stored() -> list[int]:
        async with live_database.transaction(read_only=True) as session:
            return list((await session.scalars(sa.select(RateCounterRecord.count))).all())

    expected = [] if live_settings.uses_sqlite else [1]
    async with sharing_counters(limiter, live_settings, live_database), asyncio.timeout(10):
        while await stored() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await stored() == expected


async def test_servers_share_their_counters_through_redis(live_database: Database, live_settings: Settings) -> None:
    limiters = [RateLimiter(clock) for _ in range(2)]
    for limiter in limiters:
        limiter.count("user", "u", 10)
    async with redis_server() as url:
        settings = live_settings.model_copy(update={"redis_url": url})
        async with (
            sharing_counters(limiters[0], settings, live_database),
            sharing_counters(limiters[1], settings, live_database),
            asyncio.timeout(10),
        ):
            while max(largest_count(limiter) for limiter in limiters) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    async with live_database.transaction() as session:
        assert (await session.scalars(sa.select(RateCounterRecord.count))).all() == []
    assert max(limiter.count("user", "u", 10).used for limiter in limiters) == 3


def largest_count(limiter: RateLimiter) -> int:
    return max(limiter.storages["user"]._counts.values())


async def test_invalid_redis_url_prevents_the_start(live_database: Database, live_settings: Settings) -> None:
    settings = live_settings.model_copy(update={"redis_url": "http://localhost"})
    with pytest.raises(SettingsError, match="REDIS_URL: the URL must start with redis://"):
        async with sharing_counters(RateLimiter(), settings, live_database):
            pass
    async with sharing_counters(None, settings, live_database):
        pass
