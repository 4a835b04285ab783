from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.connections import LimitedProtocol
from bloxserver.api.main import app
from bloxserver.model_catalogue import BASE_URLS
from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from bloxserver.models.enums import Tier
from bloxserver.models.tables import FlowRecord, UserRecord
from tests.api.contract import API
from tests.conftest import api_client
from tests.database_override import override_database
from tests.factories import create_flow
from tests.provider_server import ProviderServer, provider_server


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    """A flow of the development user."""
    return await create_flow(session, dev_user)


@pytest.fixture(scope="session")
def _provider_server() -> Iterator[ProviderServer]:
    with provider_server() as server:
        yield server


@pytest.fixture(autouse=True)
def providers(_provider_server: ProviderServer, monkeypatch: pytest.MonkeyPatch) -> ProviderServer:
    """The server that the API asks, instead of the providers of language models, to test a key."""
    for kind in BASE_URLS:
        monkeypatch.setitem(BASE_URLS, kind, _provider_server.url)
    _provider_server.requests.clear()
    return _provider_server


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> list[LimitedProtocol]:
    """The protocols of all connections of the test."""
    made: list[LimitedProtocol] = []
    original = LimitedProtocol.connection_made

    def connection_made(protocol: LimitedProtocol, transport: Any) -> None:
        made.append(protocol)
        original(protocol, transport)

    monkeypatch.setattr(LimitedProtocol, "connection_made", connection_made)
    return made


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["own", "documented"])
async def caller(
    request: pytest.FixtureRequest, live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """The API on its own database, and with `get_db` overridden. Each has its own route of webhooks."""
    monkeypatch.setattr(models_database, "database", live_database)
    async with AsyncExitStack() as stack:
        is_own = request.param == "own"
        stack.enter_context(nullcontext() if is_own else override_database(app, live_database))
        client = await stack.enter_async_context(api_client())
        await client.get(f"{API}/me")
        async with live_database.transaction() as session:
            await session.execute(sa.update(UserRecord).values(tier=Tier.PRO))
        yield client
