from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord, UserRecord
from tests.factories import create_flow


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    """A flow of the development user."""
    return await create_flow(session, dev_user)
