"""A worker that was frozen starts nothing and writes nothing for executions that another worker may have recovered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.blocks.base import KeyValueStore
from bloxserver.clients.memory import MemoryBudget
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.run.context import ClaimedExecutionContext, SharedClients
from bloxserver.engine.run.messages import Message
from bloxserver.engine.run.runner import ExecutionRunner
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.organism.model import ExecutionLimits
from tests.engine.pump_runs import organism
from tests.engine.queue_claims import take
from tests.factories import create_execution, create_flow, create_user
from tests.listening import listening


@asynccontextmanager
async def refusing_server() -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of a server that is never available, and the requests that it received."""
    requests: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with listening(refuse) as port:
        yield f"http://127.0.0.1:{port}/", requests


async def accepted(database: Database, url: str) -> ExecutionRecord:
    """An execution that sends a request, and retries it after a second."""
    text = organism(f"name: a, handler: http.request, config: {{url: '{url}'}}, retries: 3, backoff_seconds: 1")
    async with database.sessions() as session:
        flow = await create_flow(session, await create_user(session), organism_yaml=text)
        return await create_execution(session, flow)


async def recover(database: Database, execution: ExecutionRecord) -> ClaimedExecution:
    async with database.transaction() as session:
        assert len(await reclaim_all(session)) == 1
    return await take(database, execution, "w-present")


def run(database: Database, clients: SharedClients, execution: ClaimedExecution) -> Coroutine[Any, Any, None]:
    return ExecutionRunner(database, CheckpointWriter(database), clients, execution).run()


async def some_step(database: Database) -> None:
    async with asyncio.timeout(20):
        while True:
            async with database.transaction(read_only=True) as session:
                if await session.scalar(sa.select(ExecutionStepRecord.id)) is not None:
                    return
            await asyncio.sleep(0.01)


async def test_retry_starts_only_with_a_valid_lease(live_database: Database, clients: SharedClients) -> None:
    async with refusing_server() as (url, requests):
        execution = await accepted(live_database, url)
        frozen = await take(live_database, execution, "w-frozen")
        thawed = asyncio.create_task(run(live_database, clients, frozen))
        await some_step(live_database)
        await recover(live_database, execution)
        with pytest.raises(LeaseLost):
            await thawed
    assert len(requests) == 1


async def test_execution_claimed_long_ago_starts_only_with_a_valid_lease(
    live_database: Database, clients: SharedClients
) -> None:
    async with refusing_server() as (url, requests):
        execution = await accepted(live_database, url)
        taken = await take(live_database, execution, "w-frozen")
        frozen = replace(taken, claimed_at=taken.claimed_at - 60)
        await recover(live_database, execution)
        with pytest.raises(LeaseLost):
            await run(live_database, clients, frozen)
    assert requests == []


def store(database: Database, clients: SharedClients, execution: ClaimedExecution) -> KeyValueStore:
    """The key-value store, as a step of the execution uses it."""
    context = ClaimedExecutionContext(database, clients, execution, None, MemoryBudget(), ExecutionLimits())
    return context.context(Message("a", None), 1, None).store


async def test_key_values_are_written_only_with_a_valid_lease(live_database: Database, clients: SharedClients) -> None:
    execution = await accepted(live_database, "http://127.0.0.1/")
    frozen = store(live_database, clients, await take(live_database, execution, "w-frozen"))
    await frozen.set("key", "old")
    present = store(live_database, clients, await recover(live_database, execution))
    await present.set("key", "new")
    for write in (frozen.set("key", "old"), frozen.delete("key"), frozen.increment("number", 1), frozen.add("k", 1)):
        with pytest.raises(LeaseLost):
            await write
    assert await present.get("key") == (True, "new")
    assert await present.get("number") == (False, None)
    assert await present.increment("number", 1) == 1
