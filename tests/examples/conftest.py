from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from pydantic import SecretStr

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.settings import Settings, get_settings
from tests.clients.loopback import LoopbackServer, running_server
from tests.engine.running_engine import running_engine
from tests.smtp_server import SmtpServer, running_smtp_server

SEALING_KEY = "the key of these tests 0123456789 abcdef"

Engines = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture
async def outside() -> AsyncIterator[LoopbackServer]:
    """A server for all services that the examples call."""
    async with running_server() as server:
        yield server


@pytest.fixture
async def mail() -> AsyncIterator[SmtpServer]:
    async with running_smtp_server() as server:
        yield server


@pytest.fixture
def engine_with(live_settings: Settings, live_database: Database, mail: SmtpServer) -> Iterator[Engines]:
    """Return a function that starts an engine with secrets, mail and the given settings."""

    def engine(**changes: Any) -> AbstractAsyncContextManager[Engine]:
        settings = {
            "api_key_encryption_key": SecretStr(SEALING_KEY),
            "smtp_host": "127.0.0.1",
            "smtp_port": mail.port,
            "smtp_security": "none",
            "smtp_from": "flows@example.com",
        }
        return running_engine(live_settings, live_database, **settings | changes)

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("API_KEY_ENCRYPTION_KEY", SEALING_KEY)  # the API encrypts what the engine decrypts
        get_settings.cache_clear()
        yield engine
    get_settings.cache_clear()


@pytest.fixture
async def working(engine_with: Engines) -> AsyncIterator[Engine]:
    async with engine_with() as engine:
        yield engine
