"""The environment: names, defaults, what a start makes of it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.api.main import create_app
from bloxserver.models.database import Base, Database
from bloxserver.models.tables import UserRecord
from bloxserver.settings import Settings
from tests.api.contract import API, covers, eventually, running_flow
from tests.clerk import changed_settings

ROOT = Path(__file__).parents[2]
BROKEN = {
    "PORT": "many",
    "DATABASE_URL": "secret-word://",
    "ENABLE_DOCS": "perhaps",
    "MAX_BODY_BYTES": "-1",
    "ENV": "moon",
    "CLERK_ISSUER": "nonsense",
}
START = """
import asyncio
from bloxserver.api.main import app
from bloxserver.errors import SettingsError

async def start():
    async with app.router.lifespan_context(app):
        pass

print(app.title)
try:
    asyncio.run(start())
except SettingsError as refusal:
    print(*refusal.problems, sep="\\n")
"""
PLACEHOLDERS = {
    "CLERK_ISSUER": "",
    "CLERK_AUDIENCE": "",
    "REDIS_URL": "redis://localhost:6379",
    "STRIPE_SECRET_KEY": "sk_test_...",
    "STRIPE_WEBHOOK_SECRET": "whsec_...",
    "API_KEY_ENCRYPTION_KEY": "change-me",
    "CORS_ORIGINS": "",
}


class TestNamesAndDefaults:
    @covers("env.names", "env.switches", "env.host-port", "env.webhook-base-url", "env.cors-origins", "webhooks.limit")
    def test_of_every_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in Settings.model_fields:
            monkeypatch.delenv(name.upper(), raising=False)
        defaults = Settings()
        expected = {
            "ENV": "development",
            "DATABASE_URL": "sqlite+aiosqlite:///./bloxserver.db",
            "AUTO_CREATE_TABLES": True,
            "CLERK_ISSUER": None,
            "CLERK_AUDIENCE": None,
            "CORS_ORIGINS": ("http://localhost:3000", "https://app.openblox.ai"),
            "WEBHOOK_BASE_URL": "https://api.openblox.ai/webhooks",
            "ENABLE_DOCS": True,
            "HOST": "0.0.0.0",  # noqa: S104
            "PORT": 8000,
            "SQL_ECHO": False,
            "REDIS_URL": None,
            "STRIPE_SECRET_KEY": None,
            "STRIPE_WEBHOOK_SECRET": None,
            "API_KEY_ENCRYPTION_KEY": None,
            "MAX_BODY_BYTES": 1024 * 1024,
        }
        assert {name: getattr(defaults, name.lower()) for name in expected} == expected

    @covers("env.names", "env.database-url")
    def test_the_environment_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example")
        monkeypatch.setenv("DATABASE_URL", "postgres://user:word@host/name")
        monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_live_1")
        monkeypatch.setenv("PORT", "81")
        settings = Settings()
        assert settings.cors_origins == ("https://a.example", "https://b.example")
        assert settings.database_url == "postgresql+asyncpg://user:word@host/name"
        assert settings.stripe_secret_key is not None
        assert settings.stripe_secret_key.get_secret_value() == "sk_live_1"
        assert "sk_live_1" not in repr(settings)
        assert settings.port == 81

    @covers("env.switches")
    @pytest.mark.parametrize(("enabled", "status"), [("true", 200), ("false", 404)])
    async def test_the_docs_can_be_switched_off(self, enabled: str, status: int) -> None:
        with changed_settings(ENABLE_DOCS=enabled):
            made = create_app()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=made), base_url="http://test") as client:
            for path in ("/docs", "/redoc", "/openapi.json"):
                assert (await client.get(path)).status_code == status
            assert (await client.get("/health/live")).json()["status"] == "alive"


class TestStart:
    @covers("env.imports")
    async def test_importing_survives_what_starting_refuses(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            START,
            env=os.environ | BROKEN | {"PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        title, *problems = out.decode().splitlines()
        assert title == "BloxServer API"
        named = {problem.split(":")[0] for problem in problems}
        assert named >= {"PORT", "DATABASE_URL", "ENABLE_DOCS", "MAX_BODY_BYTES", "ENV"}
        assert "secret-word" not in out.decode() + err.decode()

    @covers("env.placeholders")
    def test_placeholders_do_not_break_development(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in PLACEHOLDERS.items():
            monkeypatch.setenv(name, value)
        settings = Settings.load()
        settings.check_startup()
        assert (settings.problems, settings.dev_bypass, settings.env) == ((), True, "development")

    @covers("env.serve")
    @pytest.mark.parametrize("module", ["uvicorn", "bloxserver.api.main"])
    async def test_it_serves_and_runs_executions(self, module: str, tmp_path: Path) -> None:
        async with served(module, tmp_path) as client:
            path = await running_flow(client)
            accepted = (await client.post(f"{path}/executions/run", json={"inputPayload": {"name": "Ada"}})).json()
            ended = await eventually(client, f"{path}/executions/{accepted['id']}", {"success", "error"})
            assert (ended["status"], "Ada" in ended["outputPayload"]) == ("success", True)
            assert (await client.get("/health/ready")).json()["checks"] == {
                "database": "ok",
                "migrations": "ok",
                "engine": "ok",
            }
            assert (await client.get(f"{API}/flows")).json()["total"] == 1


@asynccontextmanager
async def served(module: str, directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app in a process of its own, started as a user would start it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    variables = {
        "DATABASE_URL": f"sqlite+aiosqlite:///{directory}/served.db",
        "HOST": "127.0.0.1",
        "PORT": port,
        "PYTHONPATH": str(ROOT),
    }
    arguments = ["bloxserver.api.main:app", "--port", port] if module == "uvicorn" else []
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=directory,
        env=os.environ | variables,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(30):
                while True:
                    with suppress(httpx.TransportError):
                        await client.get("/health/live")
                        break
                    await asyncio.sleep(0.05)
            yield client
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -15)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@covers("env.in-memory")
async def test_a_database_in_memory_is_one_connection() -> None:
    database = Database(Settings(database_url="sqlite+aiosqlite:///:memory:"))
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async def add(number: int) -> None:
        async with database.transaction() as session:
            session.add(UserRecord(clerk_id=f"user_{number}"))

    await asyncio.gather(*[add(number) for number in range(20)])
    for read_only in (True, False):
        async with database.transaction(read_only=read_only) as session:
            assert await session.scalar(sa.select(sa.func.count()).select_from(UserRecord)) == 20
    await database.engine.dispose()
