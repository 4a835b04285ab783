"""The clients of a worker in these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest

from bloxserver.engine.run.context import SharedClients
from bloxserver.settings import Settings


@pytest.fixture
async def clients(live_settings: Settings) -> AsyncIterator[SharedClients]:
    clients = SharedClients.of(live_settings.model_copy(update={"ssrf_allow_cidrs": (ip_network("127.0.0.0/8"),)}))
    yield clients
    await clients.aclose()
