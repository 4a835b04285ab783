"""Fixtures for tests of several clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.clients.network import Network


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    # Restored before pytest ends the fixtures of the event loop, which need the original methods.
    with monkeypatch.context() as patch:
        yield Network(patch)
