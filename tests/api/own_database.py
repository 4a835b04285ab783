"""The API on a test's database as its own: `get_db` is not overridden, so that the routes of hot requests are used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from tests.conftest import api_client


@asynccontextmanager
async def own_database_client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_database, "database", database)
        async with api_client() as client:
            yield client
