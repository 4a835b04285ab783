"""The executions of all open responses of a process are read when they change, and at long intervals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api import watching
from bloxserver.api.shutdown import Shutdown
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.execution_changes import ANY, announce_changes
from bloxserver.models.tables import ExecutionRecord, FlowRecord
from bloxserver.services.deletions import delete_flow
from bloxserver.services.transitions import cancel_execution
from tests import factories
from tests.statements import count_statements
from tests.steps import create_step


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


def watch(source: Any, execution_id: UUID, shutdown: Shutdown | None = None, *, with_steps: bool = False) -> Watch:
    return Watch(source, shutdown or Shutdown(), execution_id, with_steps=with_steps)


@pytest.fixture
async def notified(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ExecutionWatcher]:
    """A watcher that learns of the changes that `live_database` commits, and by itself reads only new watches."""
    monkeypatch.setattr(watching, "NOTIFIED_INTERVAL_SECONDS", 3600.0)
    watcher = ExecutionWatcher()
    watcher.set_notified(True)
    unlisten = live_database.on_execution_change(watcher.changed)
    yield watcher
    unlisten()


async def end_by_hand(database: Database, execution_id: UUID) -> None:
    """End an execution as another program would."""
    async with database.transaction() as session:
        await session.execute(
            sa.update(ExecutionRecord).where(ExecutionRecord.id == execution_id).values(status=ExecutionStatus.SUCCESS)
        )


async def until_read(watcher: ExecutionWatcher, watches: Sequence[Watch]) -> list[asyncio.Task[bool]]:
    """Wait for changes with all watches. Returns when each execution was read once."""
    tasks = [asyncio.create_task(watcher.wait(each, 60)) for each in watches]
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0)
            if not watcher._unread and not any(each.is_unread for each in watches):
                break
        async with watcher._reading:
            pass
    return tasks


async def test_1500_responses_need_one_connection_and_few_statements(live_database: Database, flow: FlowRecord) -> None:
    watcher, source = ExecutionWatcher(), Source(live_database)
    running = await executions(live_database, flow, 15)
    watches = [watch(source, running[number % 15].id) for number in range(1500)]
    with count_statements(live_database.reading_engine) as statements:
        tasks = [asyncio.create_task(watcher.wait(each, 1.0)) for each in watches]
        await asyncio.wait(tasks)
    assert 0 < len(statements) <= 10
    assert source.most == 1
    for each in watches:
        await watcher.end(each)


async def test_idle_responses_run_no_statement(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord
) -> None:
    source = Source(live_database)
    waits = [watch(source, one.id) for one in await executions(live_database, flow, 10)]
    streams = [watch(source, one.id, with_steps=True) for one in await executions(live_database, flow, 10)]
    with count_statements(live_database.reading_engine) as statements:
        tasks = await until_read(notified, [*waits, *streams])
    assert 0 < len(statements) <= 4
    with count_statements(live_database.reading_engine) as statements:
        await asyncio.wait(tasks, timeout=0.5)
        notified.changed(frozenset(["ffffffff", "00000000"]))  # changes of unwatched executions
        await asyncio.wait(tasks, timeout=0.2)
    assert statements == []
    async with asyncio.timeout(10):
        for each, task in zip([*waits, *streams], tasks, strict=True):
            each.changed.set()
            await task
            await notified.end(each)


async def test_end_wakes_only_the_responses_of_the_execution(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord
) -> None:
    source = Source(live_database)
    first, second = await executions(live_database, flow, 2)
    watches = [watch(source, execution.id) for execution in (first, first, second)]
    tasks = await until_read(notified, watches)
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, first.id)
    async with asyncio.timeout(10):
        await asyncio.wait(tasks[:2])
    assert not tasks[2].done()
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, second.id)
    async with asyncio.timeout(10):
        assert await tasks[2] is True
    for each in watches:
        await notified.end(each)


async def test_change_is_read_although_all_executions_were_read_just_before(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(Source(live_database), execution.id)
    monkeypatch.setattr(watching, "MAX_EXECUTIONS_PER_SECOND", 1e-6)
    [task] = await until_read(notified, [waiting])
    async with live_database.transaction() as session:
        await cancel_execution(session, flow.user_id, flow.id, execution.id)
    async with asyncio.timeout(10):
        assert await task is True
    await notified.end(waiting)


async def test_deletion_wakes_the_responses_of_the_flow(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord
) -> None:
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(Source(live_database), execution.id)
    [task] = await until_read(notified, [waiting])
    async with live_database.transaction() as session:
        await delete_flow(session, flow.user_id, flow.id)
    async with asyncio.timeout(10):
        assert await task is True
    await notified.end(waiting)


async def test_change_of_a_step_wakes_streams_only(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord
) -> None:
    source = Source(live_database)
    [execution] = await executions(live_database, flow, 1)
    stream, wait = watch(source, execution.id, with_steps=True), watch(source, execution.id)
    tasks = await until_read(notified, [stream, wait])
    async with live_database.transaction() as session:
        announce_changes(session, [execution.id])
        await create_step(session, execution, "first", sequence=1)
    async with asyncio.timeout(10):
        assert await tasks[0] is True
    assert not tasks[1].done()
    tasks[1].cancel()
    for each in (stream, wait):
        await notified.end(each)


async def test_executions_whose_keys_are_equal_are_both_read(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "change_key", lambda execution_id: "the-same")
    watches = [watch(Source(live_database), one.id) for one in await executions(live_database, flow, 2)]
    tasks = await until_read(notified, watches)
    for each in watches:
        await end_by_hand(live_database, each.execution_id)
    notified.changed(frozenset(["the-same"]))
    async with asyncio.timeout(10):
        assert await asyncio.gather(*tasks) == [True, True]
    for each in watches:
        await notified.end(each)
    assert notified._ids == {}


async def test_unreported_change_is_found_at_the_next_interval(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "NOTIFIED_INTERVAL_SECONDS", 0.1)
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(Source(live_database), execution.id)
    [task] = await until_read(notified, [waiting])
    await end_by_hand(live_database, execution.id)
    async with asyncio.timeout(10):
        assert await task is True
    await notified.end(waiting)


@pytest.mark.parametrize("is_notified", [True, False])
async def test_missed_changes_are_found_when_notifications_are_lost_or_restored(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord, is_notified: bool
) -> None:
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(Source(live_database), execution.id)
    [task] = await until_read(notified, [waiting])
    await end_by_hand(live_database, execution.id)
    await asyncio.wait([task], timeout=0.1)
    assert not task.done()
    notified.set_notified(is_notified)
    async with asyncio.timeout(10):
        assert await task is True
    await notified.end(waiting)


async def test_any_change_reads_all_executions(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord
) -> None:
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(Source(live_database), execution.id)
    [task] = await until_read(notified, [waiting])
    await end_by_hand(live_database, execution.id)
    notified.changed(frozenset([ANY]))
    async with asyncio.timeout(10):
        assert await task is True
    await notified.end(waiting)


async def test_change_that_a_response_could_not_read_is_reported_again(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord
) -> None:
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(Source(live_database), execution.id)
    await end_by_hand(live_database, execution.id)
    async with asyncio.timeout(10):
        for _ in range(2):
            assert await notified.wait(waiting, 60) is True
            waiting.forget()
    await notified.end(waiting)


@pytest.mark.parametrize("is_notified", [True, False])
async def test_failed_read_is_repeated(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord, is_notified: bool
) -> None:
    notified.set_notified(is_notified)
    source = Source(live_database)
    [execution] = await executions(live_database, flow, 1)
    source.error = OSError("gone")
    waiting = watch(source, execution.id)
    assert await notified.wait(waiting, 0.1) is False
    source.error = None
    await end_by_hand(live_database, execution.id)
    async with asyncio.timeout(10):
        assert await notified.wait(waiting, 60) is True
    await notified.end(waiting)


@pytest.mark.parametrize("is_available", [True, False])
async def test_shutdown_wakes_responses(
    notified: ExecutionWatcher, live_database: Database, flow: FlowRecord, is_available: bool
) -> None:
    source, shutdown = Source(live_database), Shutdown()
    if not is_available:
        source.error = OSError("gone")
    [execution] = await executions(live_database, flow, 1)
    waiting = watch(source, execution.id, shutdown)
    [task] = await until_read(notified, [waiting])
    await asyncio.to_thread(shutdown.request)
    async with asyncio.timeout(10):
        await task
    await notified.end(waiting)
