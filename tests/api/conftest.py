from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.connections import LimitedProtocol
from bloxserver.models.tables import FlowRecord, UserRecord
from tests.factories import create_flow


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    """A flow of the development user."""
    return await create_flow(session, dev_user)


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
