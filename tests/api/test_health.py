"""The root and the health checks, with and without the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from bloxserver import __version__
from bloxserver.api.main import app
from bloxserver.models.database import get_db
from tests.api.contract import API, UTC_TIME, assert_problem, covers, failing_with
from tests.clerk import override_settings

REFUSING = "postgresql+asyncpg://user:secret-word@127.0.0.1:1/nothing"
MISSING_FILE = "sqlite+aiosqlite:////no/such/directory/secret-word.db"


async def session_that_fails() -> AsyncIterator[AsyncSession]:
    async with failing_with(OSError("secret-word")) as session:
        yield session


@pytest.fixture
async def unreachable(client: httpx.AsyncClient, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """An unavailable database: its server refuses connections, or no session can be opened."""
    if request.param is None:
        app.dependency_overrides[get_db] = session_that_fails
        yield
        return
    engine = create_async_engine(request.param, poolclass=NullPool)

    async def override() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session:
            yield session
            await session.commit()

    app.dependency_overrides[get_db] = override
    yield
    await engine.dispose()


EVERY_WAY = pytest.mark.parametrize(
    "unreachable", [REFUSING, MISSING_FILE, None], ids=["refused", "no-file", "no-session"], indirect=True
)


class TestPublicAnswers:
    @covers("public.root")
    async def test_root_describes_the_service(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/")
        assert response.status_code == 200
        assert response.json() == {
            "name": "BloxServer API",
            "version": __version__,
            "docs": "/docs",
            "health": "/health",
        }

    @covers("public.health", "public.live", "public.ready")
    @pytest.mark.parametrize(
        ("path", "members"),
        [
            ("/health", {"status": "healthy", "service": "bloxserver-api"}),
            ("/health/live", {"status": "alive"}),
            ("/health/ready", {"status": "ready", "checks": {"database": "ok", "migrations": "ok"}}),
        ],
    )
    async def test_health_checks_succeed(
        self, client: httpx.AsyncClient, path: str, members: dict[str, object]
    ) -> None:
        response = await client.get(path)
        body = response.json()
        assert response.status_code == 200
        assert UTC_TIME.fullmatch(body.pop("timestamp"))
        assert body == members


class TestWithoutDatabase:
    @covers("public.live")
    @EVERY_WAY
    async def test_liveness_does_not_depend_on_the_database(self, client: httpx.AsyncClient, unreachable: None) -> None:
        answers = {path: (await client.get(path)).json().get("status") for path in ("/", "/health", "/health/live")}
        assert answers == {"/": None, "/health": "healthy", "/health/live": "alive"}

    @covers("public.ready.unhealthy")
    @EVERY_WAY
    async def test_readiness_fails_without_the_database(self, client: httpx.AsyncClient, unreachable: None) -> None:
        response = await client.get("/health/ready")
        body = response.json()
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert body.keys() == {"status", "timestamp", "checks", "errors"}
        assert body["status"] == "unhealthy"
        assert body["checks"]["database"] != "ok"
        assert body["errors"] == ["database: the database cannot be reached"]
        assert "secret-word" not in response.text

    @covers("errors.database-down")
    @EVERY_WAY
    async def test_other_routes_respond_with_503(self, client: httpx.AsyncClient, unreachable: None) -> None:
        calls = [("GET", f"{API}/flows"), ("POST", f"{API}/flows"), ("GET", f"{API}/me"), ("POST", "/webhooks/token")]
        for method, path in calls:
            response = await client.request(method, path, json={"name": "A flow"})
            assert_problem(response, 503, "database_unavailable", "The database cannot be reached, try again")
            assert response.headers["retry-after"] == "5"


class TestSchema:
    @covers("public.ready.unhealthy")
    async def test_unmigrated_tables_are_not_ready_in_production(self, client: httpx.AsyncClient) -> None:
        with override_settings(ENV="production"):
            response = await client.get("/health/ready")
        body = response.json()
        assert response.status_code == 503
        assert (body["status"], body["checks"]) == ("unhealthy", {"database": "ok", "migrations": "failed"})
        assert body["errors"] == ["migrations: the database is not migrated: run `bloxserver migrate`"]

    @covers("public.ready")
    async def test_newer_schema_is_ready(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        await session.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        await session.execute(sa.text("INSERT INTO alembic_version VALUES ('of_the_future')"))
        await session.commit()
        try:
            response = await client.get("/health/ready")
            assert (response.status_code, response.json()["checks"]["migrations"]) == (200, "ok")
        finally:
            await session.execute(sa.text("DROP TABLE alembic_version"))
            await session.commit()
