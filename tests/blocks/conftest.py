"""The context of blocks in these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from ipaddress import ip_network
from uuid import UUID, uuid4

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext
from bloxserver.blocks.cel.values import MAX_ISOLATED_STEPS, Budget
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.mail import Mailer
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.plans import PLANS
from tests.clients.loopback import LoopbackServer, running_server

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class NoStore:
    """For blocks that do not use key-value storage."""

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        raise AssertionError("not expected here")

    async def set(self, key: str, value: JsonValue) -> None:
        raise AssertionError("not expected here")

    async def delete(self, key: str) -> bool:
        raise AssertionError("not expected here")

    async def add(self, key: str, value: JsonValue) -> tuple[bool, JsonValue]:
        raise AssertionError("not expected here")

    async def increment(self, key: str, by: float) -> float:
        raise AssertionError("not expected here")


class NoFlows:
    """For blocks that do not call flows."""

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        raise AssertionError("not expected here")


@pytest.fixture
async def context() -> BlockContext:
    """A context with a fixed time and access to 127.0.0.1, without storage, other flows and a mail server."""
    return BlockContext(
        http=GuardedClient(allow=[ip_network("127.0.0.1/32")], max_response_bytes=100_000),
        clock=lambda: NOW,
        idempotency_key="key-1",
        store=NoStore(),
        flows=NoFlows(),
        mail=Mailer(default=None, sender=None),
        isolated=IsolatedTasks(uuid4(), PLANS["enterprise"]),
        budget=Budget(MAX_ISOLATED_STEPS),
    )


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        yield server
