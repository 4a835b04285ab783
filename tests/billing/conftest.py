from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from bloxserver.models.database import Database
from tests.billing.billing_world import BillingWorld, billing_world


@pytest.fixture
async def world(live_client: httpx.AsyncClient, live_database: Database) -> AsyncIterator[BillingWorld]:
    async with billing_world(live_client, live_database) as world:
        yield world
