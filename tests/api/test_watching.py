"""One statement watches the executions of all open responses of a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api import watching
from bloxserver.api.shutdown import Shutdown
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowRecord
from bloxserver.services.transitions import cancel_execution
from tests import factories
from tests.statements import count_statements


class Source:
    """Read-only sessions of a database, and the number of those that were open at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.open = 0
        self.most = 0
        self.error: Exception | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        if self.error is not None:
            raise self.error
        self.open += 1
        self.most = max(self.most, self.open)
        async with self._database.transaction(read_only=True) as session:
            yield session
        self.open -= 1


@pytest.fixture
async def flow(live_database: Database) -> FlowRecord:
    async with live_database.sessions() as session:
        return await factories.create_flow(session, await factories.create_user(session))


async def executions(database: Database, flow: FlowRecord, count: int) -> list[ExecutionRecord]:
    async with database.sessions() as session:
        return [await factories.create_execution(session, flow) for _ in range(count)]


def watch(source: Any, execution_id: UUID, shutdown: Shutdown | None = None) -> Watch:
    return Watch(source, shutdown or Shutdown(), execution_id)


async def test_1500_responses_need_one_connection_and_few_statements(live_database: Database, flow: FlowRecord) -> None:
    watcher, source = ExecutionWatcher(), Source(live_database)
    running = await executions(live_database, flow, 15)
    watches = [watch(source, running[number % 15].id) for number in range(1500)]
    engine = live_database._reading_engine
    with count_statements(engine) as statements:
        tasks = [asyncio.create_task(watcher.wait(each, 1.0)) for each in watches]
        await asyncio.wait(tasks)
    assert 0 < len(statements) <= 10
    assert source.most == 1
    for each in watches:
        await watcher.end(each)


async def test_end_wakes_only_the_responses_of_the_execution(live_database: Database, flow: FlowRecord) -> None:
    watcher, source = ExecutionWatcher(), Source(live_database)
    first, second = await executions(live_database, flow, 2)
    unlisten = live_database.on_commit(lambda reasons: watcher.wake())
    watches = [watch(source, execution.id) for execution in (first, first, second)]
    tasks = [asyncio.create_task(watcher.wait(each, 60)) for each in watches]
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, first.id)
    async with asyncio.timeout(10):
        await asyncio.wait(tasks[:2])
    assert not tasks[2].done()
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, second.id)
    async with asyncio.timeout(10):
        await tasks[2]
    unlisten()
    for each in watches:
        await watcher.end(each)


async def test_commit_is_noticed_before_the_next_interval(
    live_database: Database, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MIN_INTERVAL_SECONDS", 3600.0)
    monkeypatch.setattr(watching, "MAX_INTERVAL_SECONDS", 3600.0)
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.0)
    watcher, source = ExecutionWatcher(), Source(live_database)
    [execution] = await executions(live_database, flow, 1)
    unlisten = live_database.on_commit(lambda reasons: watcher.wake())
    waiting = watch(source, execution.id)
    task = asyncio.create_task(watcher.wait(waiting, 60))
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, execution.id)
    async with asyncio.timeout(10):
        await task
    unlisten()
    await watcher.end(waiting)


async def test_failed_read_is_repeated(live_database: Database, flow: FlowRecord) -> None:
    watcher, source = ExecutionWatcher(), Source(live_database)
    [execution] = await executions(live_database, flow, 1)
    source.error = OSError("gone")
    waiting = watch(source, execution.id)
    await watcher.wait(waiting, 0.1)
    source.error = None
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, execution.id)
    async with asyncio.timeout(10):
        await watcher.wait(waiting, 60)
    await watcher.end(waiting)


@pytest.mark.parametrize("is_available", [True, False])
async def test_shutdown_wakes_responses(live_database: Database, flow: FlowRecord, is_available: bool) -> None:
    watcher, source, shutdown = ExecutionWatcher(), Source(live_database), Shutdown()
    if not is_available:
        source.error = OSError("gone")
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(source, execution.id, shutdown)
    task = asyncio.create_task(watcher.wait(waiting, 60))
    shutdown.request()
    async with asyncio.timeout(10):
        await task
    await watcher.end(waiting)
