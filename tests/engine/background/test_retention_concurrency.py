"""Retention runs in short transactions, without table scans, and in one process at a time."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from structlog.testing import capture_logs

from bloxserver.clock import now
from bloxserver.engine.background.expired import read_step_sizes
from bloxserver.engine.background.retention import EXECUTIONS, FLOWS
from bloxserver.engine.background.retention_batches import MAX_ROWS, PRUNE_LOCK, STEPS, Batch, PruneResult, delete_batch
from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, NotificationChannel
from bloxserver.models.tables import (
    AuditEventRecord,
    ExecutionRecord,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    IdempotencyKeyRecord,
    LlmCallRecord,
)
from tests.engine.retention_world import SUCCESS, World, deleting_transactions, until
from tests.factories import create_flow

MEBIBYTE = 1024 * 1024


class TestTransactions:
    async def test_many_executions_are_deleted_in_several_transactions(self, world: World) -> None:
        for _ in range(2 * EXECUTIONS + 10):
            await world.add_steps(await world.execution(40), 6)
        young = await world.execution(1)
        with deleting_transactions(world.database) as transactions:
            assert await world.prune(days=30) == PruneResult(executions=210, steps=1260)
        assert sum(transactions) == 1470
        assert max(transactions) <= MAX_ROWS
        assert await world.left() == {young}

    async def test_execution_with_many_steps_is_deleted_in_several_transactions(self, world: World) -> None:
        large = await world.execution(40)
        await world.add_steps(large, 2 * STEPS + 50)
        for _ in range(3):
            await world.add_steps(await world.execution(40), 2)
        with deleting_transactions(world.database) as transactions:
            assert await world.prune(days=30) == PruneResult(executions=4, steps=2 * STEPS + 56)
        assert max(transactions) <= MAX_ROWS
        assert await world.left() == set()

    async def test_execution_with_large_steps_is_deleted_in_several_transactions(self, world: World) -> None:
        large = await world.execution(40)
        await world.add_steps(large, 7, 3 * MEBIBYTE)
        with deleting_transactions(world.database) as transactions:
            assert await world.prune(days=30) == PruneResult(executions=1, steps=7)
        assert transactions == [2, 2, 2, 2]

    async def test_concurrent_write_waits_for_one_transaction_at_most(
        self, world: World, live_client: httpx.AsyncClient, backend: str
    ) -> None:
        """On SQLite, where all writes share a connection."""
        if backend != "sqlite":
            pytest.skip("PostgreSQL has many writers")
        webhook = await world.webhook()
        for _ in range(8):
            await world.add_steps(await world.execution(40), STEPS - 10)
        with deleting_transactions(world.database) as transactions:
            pruning = asyncio.create_task(world.prune(days=30))

            async def has_begun() -> bool:
                return len(transactions) > 0

            await until(has_begun)
            for _ in range(3):
                before = len(transactions)
                assert (await live_client.post(webhook)).status_code == 200
                assert len(transactions) - before <= 2, "the one that was at it, and one that began before the writing"
            assert not pruning.done()
            assert await pruning == PruneResult(executions=8, steps=8 * (STEPS - 10))

    async def test_stalled_transaction_does_not_block_others(
        self, world: World, live_client: httpx.AsyncClient, backend: str
    ) -> None:
        """On PostgreSQL, where it locks only rows that no other transaction needs."""
        if backend != "postgresql":
            pytest.skip("SQLite has one writer")
        webhook, old = await world.webhook(), await world.execution(40)
        await world.add_steps(old, 3)
        async with world.database.transaction() as session:
            batch = Batch([old], await read_step_sizes(session, [old], STEPS))
            assert await delete_batch(session, batch) == PruneResult(executions=1, steps=3)
            accepted = await live_client.post(webhook)
            assert accepted.status_code == 200
            await session.rollback()


class TestOneProcess:
    async def test_one_process_deletes_at_a_time(self, world: World, backend: str) -> None:
        old = await world.execution(40)
        if backend == "postgresql":
            async with world.database.transaction() as session:
                await session.execute(sa.select(sa.func.pg_advisory_xact_lock(PRUNE_LOCK)))
                assert await world.prune(days=30) == PruneResult(lock_busy=True)
                assert await world.left() == {old}
        assert await world.prune(days=30) == PruneResult(executions=1)

    async def test_concurrent_runs_delete_each_row_once(self, world: World) -> None:
        for _ in range(2 * EXECUTIONS):
            await world.add_steps(await world.execution(40), 3)
        results = await asyncio.gather(*(world.prune(days=30) for _ in range(3)))
        results.append(await world.prune(days=30))
        assert sum(result.executions for result in results) == 2 * EXECUTIONS
        assert sum(result.steps for result in results) == 6 * EXECUTIONS
        assert await world.left() == set()


class TestFailures:
    async def test_retention_continues_after_a_database_outage(self, world: World) -> None:
        await world.execution(40)
        await renamed(world.database, "flows", "elsewhere")
        with capture_logs() as logs:
            running = asyncio.create_task(world.retention(30, first_pause_seconds=0.02, interval_seconds=0.02).run())

            async def has_failed() -> bool:
                return any(log["event"] == "deleting expired rows failed" for log in logs)

            async def is_done() -> bool:
                return not await world.left()

            await until(has_failed)
            await renamed(world.database, "elsewhere", "flows")
            await until(is_done)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_failing_flow_does_not_block_others(self, world: World) -> None:
        async with world.database.sessions() as session:
            others = [await create_flow(session, world.user, id=UUID(int=number)) for number in (1, 2**128 - 1)]
        stuck, *_ = [await world.execution(40, flow=flow) for flow in (world.flow, *others)]
        await refuse_deletion(world.database, stuck)
        with capture_logs() as logs:
            assert await world.prune(days=30) == PruneResult(executions=2)
        assert await world.left() == {stuck}
        assert [(log["event"], log["flow_id"]) for log in logs] == [("flow not pruned", str(world.flow.id))]


async def renamed(database: Database, old: str, new: str) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))


async def refuse_deletion(database: Database, execution_id: UUID) -> None:
    """Fail by a trigger in the database."""
    async with database.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            await connection.execute(
                sa.text(
                    f"CREATE TRIGGER refuse BEFORE DELETE ON executions WHEN old.id = '{execution_id.hex}' "
                    "BEGIN SELECT RAISE(ABORT, 'refused'); END"
                )
            )
            return
        body = f"BEGIN IF old.id = '{execution_id}' THEN RAISE 'refused'; END IF; RETURN old; END"
        await connection.execute(sa.text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"))
        await connection.execute(
            sa.text("CREATE TRIGGER refuse BEFORE DELETE ON executions FOR EACH ROW EXECUTE FUNCTION refuse()")
        )


async def test_all_flows_are_read(world: World) -> None:
    async with world.database.transaction() as session:
        flows = [FlowRecord(id=uuid4(), user_id=world.user.id, name=str(number)) for number in range(FLOWS + 20)]
        session.add_all(flows)
    for flow in flows[::10]:
        await world.execution(40, flow=flow)
    for flow in flows[5::10]:
        await world.execution(1, flow=flow)
    assert await world.prune(days=30) == PruneResult(executions=12)
    assert len(await world.left()) == 12


async def test_a_dry_run_counts_and_deletes_nothing(world: World) -> None:
    for _ in range(EXECUTIONS + 5):
        await world.add_steps(await world.execution(40), 2)
    kept = await world.left()
    would = await world.retention(30).prune(dry_run=True)
    assert would == PruneResult(executions=EXECUTIONS + 5, steps=2 * EXECUTIONS + 10)
    assert await world.left() == kept
    assert await world.prune(days=30) == would


async def test_no_statement_scans_a_whole_table(world: World) -> None:
    """Checks the query plan of each statement, with tables that are not small."""
    await fill(world)
    running = await world.execution(50, status=ExecutionStatus.RUNNING)
    await world.execution(50, parent_id=running, parent_key="a:1")
    for _ in range(3):
        await world.add_steps(await world.execution(40), 3)
    await world.add_versions(range(1, 30))
    engine, seen = world.database.engine.sync_engine, {}

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if re.match(r"(SELECT|DELETE).*\bFROM\b", statement, re.DOTALL):
            seen[statement] = parameters

    engines = {engine, world.database.reading_sessions.kw["bind"].sync_engine}
    for each in engines:
        event.listen(each, "before_cursor_execute", note)
    limits = {"per_flow": EXECUTIONS_OF_OTHERS, "versions": EXECUTIONS_OF_OTHERS}
    pruned = await world.prune(days=30, **limits)
    assert (pruned.executions, pruned.versions) == (3 + OTHERS_WITH_EXCESS, 29 - EXECUTIONS_OF_OTHERS)
    await world.add_versions(range(30, 40))
    await world.execution(40)
    await world.retention(30, **limits).prune(dry_run=True)
    for each in engines:
        event.remove(each, "before_cursor_execute", note)
    tables = {table for statement in seen for table in re.findall(r"(?:FROM|JOIN) (\w+)", statement)}
    assert {"flows", "flow_versions", "executions", "execution_steps", "failure_notifications"} <= tables
    for statement, parameters in seen.items():
        plan = await explained(world.database, statement, parameters)
        assert not re.search(r"Seq Scan|SCAN (?!(flows|execution_totals) USING)|TEMP B-TREE", plan), (
            f"{statement}\n{plan}"
        )


OTHERS = 200
OTHERS_WITH_EXCESS = 10
EXECUTIONS_OF_OTHERS = 10


async def fill(world: World) -> None:
    """With young executions of other flows, of a version, two steps and a notification each."""
    moment = now()
    async with world.database.transaction() as session:
        flows = [{"id": new_id(), "user_id": world.user.id, "name": "A"} for _ in range(OTHERS)]
        await session.execute(sa.insert(FlowRecord), flows)
        values = {"trigger_type": "manual", "status": SUCCESS, "started_at": moment, "completed_at": moment}
        keys = [{"owner_id": new_id(), "key_hash": b"", "request_hash": b""} for _ in range(1000)]
        await session.execute(sa.insert(IdempotencyKeyRecord), keys)
        event = {"user_id": world.user.id, "actor": "user", "actor_id": "", "action": "", "resource_id": ""}
        await session.execute(sa.insert(AuditEventRecord), [event] * 1000)
        await session.execute(sa.insert(LlmCallRecord), [{"user_id": world.user.id, "model": "m"}] * 1000)
        versions = [
            {"id": new_id(), "flow_id": flow["id"], "number": number, "organism_yaml": "x"}
            for index, flow in enumerate(flows)
            for number in range(EXECUTIONS_OF_OTHERS + (index < OTHERS_WITH_EXCESS))
        ]
        await session.execute(sa.insert(FlowVersionRecord), versions)
        executions = [
            {"id": new_id(), "flow_id": version["flow_id"], "flow_version_id": version["id"], **values}
            for version in versions
        ]
        await session.execute(sa.insert(ExecutionRecord), executions)
        steps = [
            {"execution_id": execution["id"], "key": key, "listener": key, "output_payload": "x" * 500}
            for execution in executions
            for key in "ab"
        ]
        await session.execute(sa.insert(ExecutionStepRecord), steps)
        notices = [{"execution_id": execution["id"], "channel": NotificationChannel.URL} for execution in executions]
        await session.execute(sa.insert(FailureNotificationRecord), notices)
    async with world.database.engine.connect() as connection:
        await connection.execute(sa.text("ANALYZE"))
        await connection.commit()


async def explained(database: Database, statement: str, parameters: Any) -> str:
    async with database.engine.connect() as connection:
        verb = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        rows = await connection.exec_driver_sql(f"{verb} {statement}", parameters)
        plan = "\n".join(str(row[-1]) for row in rows)
        await connection.rollback()
    return plan
