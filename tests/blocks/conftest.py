"""The world as blocks see it in these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from ipaddress import ip_network

import pytest

from bloxserver.blocks.base import BlockContext
from bloxserver.clients.http import GuardedClient
from tests.clients.loopback import LoopbackServer, running_server

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
async def context() -> AsyncIterator[BlockContext]:
    """Time stands still, and 127.0.0.1 may be reached."""
    client = GuardedClient(allow=[ip_network("127.0.0.1/32")], max_response_bytes=100_000)
    yield BlockContext(http=client, clock=lambda: NOW, idempotency_key="key-1")
    await client.aclose()


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        yield server
