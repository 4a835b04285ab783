"""Fixtures for tests of several clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.clients.network import Network


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    # Undone here, not by pytest: the loop must be itself again when its fixtures end.
    with monkeypatch.context() as patch:
        yield Network(patch)
