"""Environment variables: names, defaults and values."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.api.main import create_app
from bloxserver.models.database import Base, Database
from bloxserver.models.tables import UserRecord
from bloxserver.settings import Settings
from tests.api.contract import covers
from tests.clerk import override_settings

ROOT = Path(__file__).parents[2]
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
    def test_defaults_of_all_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
    def test_settings_are_read_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
    async def test_docs_can_be_disabled(self, enabled: str, status: int) -> None:
        with override_settings(ENABLE_DOCS=enabled):
            made = create_app()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=made), base_url="http://test") as client:
            for path in ("/docs", "/redoc", "/openapi.json"):
                assert (await client.get(path)).status_code == status
            assert (await client.get("/health/live")).json()["status"] == "alive"


class TestStart:
    @covers("env.placeholders")
    def test_placeholders_do_not_prevent_a_start_in_development(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in PLACEHOLDERS.items():
            monkeypatch.setenv(name, value)
        settings = Settings.load()
        settings.check_startup()
        assert (settings.problems, settings.dev_bypass, settings.env) == ((), True, "development")


@covers("env.in-memory")
async def test_in_memory_database_uses_one_connection() -> None:
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
