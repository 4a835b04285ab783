from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from bloxserver.models.database import Database
from tests.billing.billing_world import BillingWorld, billing_world
from tests.billing.metering_world import MeteringWorld, metering_world


@pytest.fixture
async def world(live_client: httpx.AsyncClient, live_database: Database) -> AsyncIterator[BillingWorld]:
    async with billing_world(live_client, live_database) as world:
        yield world


@pytest.fixture
async def metering(live_database: Database) -> AsyncIterator[MeteringWorld]:
    async with metering_world(live_database) as metering:
        yield metering
