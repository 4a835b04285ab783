from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.account_emails.email_world import EmailWorld, email_world


@pytest.fixture
async def emails(live_database: Database, live_settings: Settings) -> AsyncIterator[EmailWorld]:
    async with email_world(live_database, live_settings) as world:
        yield world
