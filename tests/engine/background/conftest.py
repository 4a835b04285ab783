from __future__ import annotations

import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.engine.retention_world import World


@pytest.fixture
async def world(live_settings: Settings, live_database: Database) -> World:
    world = World(live_settings, live_database)
    await world.arrange()
    return world
