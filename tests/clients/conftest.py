"""Fixtures for tests of several clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from bloxserver.clients.http import GuardedClient
from tests.clients.loopback import LoopbackServer, running_server
from tests.clients.network import Network

LOOPBACK = ip_network("127.0.0.1/32")


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    # Restored before pytest ends the fixtures of the event loop, which need the original methods.
    with monkeypatch.context() as patch:
        yield Network(patch)


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        yield server


@pytest.fixture
async def client() -> GuardedClient:
    """A client that allows only 127.0.0.1, on any port."""
    return GuardedClient(allow=[LOOPBACK], max_response_bytes=100_000, total_timeout_seconds=5)
