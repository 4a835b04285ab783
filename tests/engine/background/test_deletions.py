"""Large deletions are completed in the background, in short transactions, by one process at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.background.deletions import DELETION_LOCK, Deletions, _detach_executions
from bloxserver.engine.background.retention_batches import MAX_ROWS
from bloxserver.engine.engine import Engine
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.models.database import Base, Database
from bloxserver.models.enums import ExecutionStatus, NotificationChannel
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionSeriesRecord,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    KeyValueRecord,
    TriggerRecord,
    UserRecord,
)
from bloxserver.services.deletions import FLOW_DELETED, delete_flow, delete_trigger
from bloxserver.settings import Settings
from tests.deleting import LARGE, add_executions, count
from tests.engine.queue.test_checkpoints import checkpoint
from tests.engine.queue_claims import claim
from tests.engine.retention_world import deleting_transactions, until
from tests.engine.run.test_call_results import gated, wait_for
from tests.engine.running_engine import accept, running_engine, started_flow
from tests.factories import create_execution, create_flow, create_trigger, create_user


class World:
    """A user with a flow that is kept and a large flow that is deleted."""

    user: UserRecord
    kept: FlowRecord
    flow: FlowRecord
    trigger: TriggerRecord

    def __init__(self, database: Database) -> None:
        self.database = database
        self.deletions = Deletions(database, min_interval_seconds=0.0)

    async def arrange(self, session: AsyncSession, executions: int = LARGE, steps: int = 0) -> None:
        self.user = await create_user(session)
        self.kept, self.flow = [await self._flow(session, name) for name in ("Kept", "Large")]
        self.trigger = await create_trigger(session, self.flow)
        await add_executions(session, self.flow, executions, steps=steps, trigger_id=self.trigger.id)

    async def _flow(self, session: AsyncSession, name: str) -> FlowRecord:
        """Create a flow with a row in every table that belongs to flows."""
        flow = await create_flow(session, self.user, name=name)
        version = FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="x")
        session.add_all([version, KeyValueRecord(flow_id=flow.id, key="k")])
        await session.flush()
        trigger = await create_trigger(session, flow)
        execution = await create_execution(session, flow, trigger_id=trigger.id, flow_version_id=version.id)
        session.add(ExecutionStepRecord(execution_id=execution.id, key="1", listener="a"))
        for concerned in ({"execution_id": execution.id}, {"trigger_id": trigger.id}, {"flow_id": flow.id}):
            session.add(FailureNotificationRecord(channel=NotificationChannel.URL, **concerned))
        await session.commit()
        return flow

    async def delete_flow(self) -> None:
        async with self.database.transaction() as session:
            await delete_flow(session, self.user.id, self.flow.id)

    async def delete_trigger(self) -> None:
        async with self.database.transaction() as session:
            await delete_trigger(session, self.user.id, self.flow.id, self.trigger.id)

    async def counts(self) -> dict[str, int]:
        async with self.database.transaction(read_only=True) as session:
            return {table.name: await count(session, table) for table in Base.metadata.sorted_tables}  # type: ignore[arg-type]

    async def status_of(self, execution_id: UUID) -> ExecutionStatus:
        async with self.database.transaction(read_only=True) as session:
            return (await session.get_one(ExecutionRecord, execution_id)).status


OF_KEPT = {
    "flows": 1,
    "flow_versions": 1,
    "triggers": 1,
    "executions": 1,
    "execution_steps": 1,
    "key_values": 1,
    "failure_notifications": 3,
}


@pytest.fixture
async def world(live_database: Database) -> World:
    world = World(live_database)
    async with live_database.sessions() as session:
        await world.arrange(session)
    return world


async def test_all_rows_of_the_flow_are_deleted_and_no_others(world: World) -> None:
    await world.delete_flow()
    before = await world.counts()
    assert (before["flows"], before["executions"]) == (2, LARGE + 2)
    assert await world.deletions.count_pending() == (1, 0)
    result = await world.deletions.finish()
    assert (result.flows, result.triggers, result.is_complete) == (1, 0, True)
    assert (result.rows.executions, result.rows.steps, result.rows.versions) == (LARGE + 1, 1, 1)
    after = await world.counts()
    assert {name: after[name] for name in OF_KEPT} == OF_KEPT
    assert await world.deletions.count_pending() == (0, 0)
    assert (await world.deletions.finish()).rows.rows == 0


async def test_no_transaction_deletes_many_rows(world: World) -> None:
    async with world.database.sessions() as session:
        await add_executions(session, world.flow, 700, steps=3)
        await add_executions(session, world.flow, 1, steps=2 * MAX_ROWS)
        rows = [{"flow_id": world.flow.id, "number": number, "organism_yaml": "x"} for number in range(10, 50)]
        await session.execute(sa.insert(FlowVersionRecord), rows)
        await session.commit()
    await world.delete_flow()
    with deleting_transactions(world.database) as transactions:
        assert (await world.deletions.finish()).is_complete
    assert max(transactions) <= MAX_ROWS
    assert len(transactions) > (LARGE + 701 + 2100 + 2 * MAX_ROWS) // MAX_ROWS


async def test_series_of_the_flow_are_deleted_in_batches(world: World) -> None:
    """On PostgreSQL, buckets without executions can remain."""
    buckets = 2 * MAX_ROWS
    rows = [
        {
            "flow_id": world.flow.id,
            "mode": "normal",
            "seconds": 60,
            "start": now() - timedelta(minutes=number),
            "slot": 7,
        }
        for number in range(buckets)
    ]
    async with world.database.transaction() as session:
        await session.execute(sa.insert(ExecutionSeriesRecord), rows)
    await world.delete_flow()
    with deleting_transactions(world.database) as transactions:
        result = await world.deletions.finish()
    assert result.is_complete
    assert result.rows.others >= buckets
    assert len(transactions) > 2 * LARGE // MAX_ROWS + buckets // MAX_ROWS
    async with world.database.transaction(read_only=True) as session:
        assert await count(session, ExecutionSeriesRecord, ExecutionSeriesRecord.flow_id == world.flow.id) == 0


async def test_executions_of_a_deleted_trigger_lose_it_in_batches(world: World) -> None:
    async with world.database.sessions() as session:
        await add_executions(session, world.flow, MAX_ROWS, trigger_id=world.trigger.id)
    await world.delete_trigger()
    async with world.database.transaction() as session:
        batches = [await _detach_executions(session, world.trigger.id) for _ in range(4)]
        assert batches == [MAX_ROWS, MAX_ROWS, LARGE - MAX_ROWS, 0]
        await session.rollback()
    result = await world.deletions.finish()
    assert (result.triggers, result.detached, result.is_complete) == (1, LARGE + MAX_ROWS, True)
    async with world.database.sessions() as session:
        assert await count(session, TriggerRecord, TriggerRecord.id == world.trigger.id) == 0
        assert await count(session, ExecutionRecord, ExecutionRecord.flow_id == world.flow.id) == LARGE + MAX_ROWS + 1
        assert await count(session, TriggerRecord, TriggerRecord.flow_id == world.flow.id) == 1, "the other trigger"


async def test_callers_resume_and_called_executions_are_cancelled_on_deletion(world: World) -> None:
    later = now() + timedelta(days=1)
    async with world.database.sessions() as session:
        caller = await create_execution(session, world.kept, resume_at=later)
        own = await create_execution(session, world.flow, parent_id=caller.id, parent_key="a:1", depth=1)
        called = await create_execution(session, world.kept, parent_id=own.id, parent_key="a:1", depth=2)
    await world.delete_flow()
    await world.deletions._cancel_running()
    async with world.database.sessions() as session:
        rows = {row.id: row for row in await session.scalars(sa.select(ExecutionRecord))}
        assert (rows[own.id].status, rows[own.id].error_message) == (ExecutionStatus.CANCELLED, FLOW_DELETED)
        assert rows[called.id].status is ExecutionStatus.CANCELLED
        assert rows[caller.id].status is ExecutionStatus.RUNNING
        resume_at = rows[caller.id].resume_at
        assert resume_at is not None
        assert resume_at <= now()
    await world.deletions.finish()
    assert await world.status_of(caller.id) is ExecutionStatus.RUNNING


async def test_execution_accepted_during_the_deletion_is_deleted(world: World) -> None:
    """A webhook that had read the flow before."""
    await world.delete_flow()
    async with world.database.sessions() as session:
        await create_execution(session, world.flow)
    assert (await world.deletions.finish()).flows == 1
    assert (await world.counts())["executions"] == 1


async def test_interrupted_deletion_continues(world: World) -> None:
    async with world.database.sessions() as session:
        await add_executions(session, world.flow, 3 * MAX_ROWS)
    await world.delete_flow()
    with deleting_transactions(world.database) as transactions:
        first = asyncio.create_task(Deletions(world.database, min_interval_seconds=0.01).finish())

        async def has_begun() -> bool:
            return len(transactions) > 0

        await until(has_begun)
        first.cancel()
        await asyncio.wait({first})
    assert first.cancelled()
    assert 0 < (await world.counts())["executions"] - 1 < LARGE + 3 * MAX_ROWS + 1
    assert (await world.deletions.finish()).flows == 1
    assert (await world.counts())["executions"] == 1


class TestLocks:
    """On PostgreSQL; SQLite has one writer, whose transactions are short."""

    @pytest.fixture(autouse=True)
    def postgresql(self, backend: str) -> None:
        if backend == "sqlite":
            pytest.skip("SQLite has one writer")

    async def test_deletion_request_does_not_block_other_flows(
        self, world: World, live_client: httpx.AsyncClient
    ) -> None:
        """While its transaction is open, a run and a checkpoint of another flow of the same user are written."""
        async with world.database.sessions() as session:
            webhook = await create_trigger(session, world.kept)
        async with world.database.transaction() as session:
            claimed = {execution.flow_id: execution for execution in await claim(session)}
        async with world.database.transaction() as session:
            await delete_flow(session, world.user.id, world.flow.id)
            async with asyncio.timeout(4):
                assert (await live_client.post(f"/webhooks/{webhook.webhook_token}")).status_code == 200
                await CheckpointWriter(world.database).save(checkpoint(claimed[world.kept.id]))
            await session.rollback()

    async def test_deletion_batch_does_not_block_other_flows(
        self, world: World, live_client: httpx.AsyncClient
    ) -> None:
        async with world.database.sessions() as session:
            webhook = await create_trigger(session, world.kept)
        async with world.database.transaction() as session:
            claimed = {execution.flow_id: execution for execution in await claim(session)}
        await world.delete_trigger()
        async with world.database.transaction() as session:
            assert await _detach_executions(session, world.trigger.id) == MAX_ROWS
            async with asyncio.timeout(4):
                assert (await live_client.post(f"/webhooks/{webhook.webhook_token}")).status_code == 200
                for execution in claimed.values():
                    await CheckpointWriter(world.database).save(checkpoint(execution))
            await session.rollback()

    @pytest.mark.parametrize("of_trigger", [True, False])
    async def test_deletion_skips_locked_executions(self, world: World, of_trigger: bool) -> None:
        await (world.delete_trigger() if of_trigger else world.delete_flow())
        ended = sa.select(ExecutionRecord.id).where(
            ExecutionRecord.trigger_id == world.trigger.id, ExecutionRecord.status == ExecutionStatus.SUCCESS
        )
        async with world.database.transaction() as session:
            await session.execute(ended.limit(1).with_for_update(key_share=True))
            async with asyncio.timeout(4):
                result = await world.deletions.finish()
        assert (result.flows, result.triggers, result.is_complete) == (0, 0, False)
        result = await world.deletions.finish()
        assert (result.flows, result.triggers, result.is_complete) == (not of_trigger, of_trigger, True)

    async def test_only_one_process_deletes_at_a_time(self, world: World) -> None:
        await world.delete_flow()
        before = await world.counts()
        async with world.database.transaction() as session:
            await session.execute(sa.select(sa.func.pg_advisory_xact_lock(DELETION_LOCK)))
            assert not (await world.deletions.finish()).is_complete
        assert await world.counts() == before


SLOW = """
organism: {{name: slow}}
listeners:
  - {{name: slow, description: d, handler: http.request, config: {{url: "{url}/slow"}}, peers: [after]}}
  - {{name: after, description: d, handler: http.request, config: {{url: "{url}/after"}}}}
"""


async def test_engine_completes_deletions_and_stops_running_executions(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    async with gated() as gate, running_engine(live_settings, live_database) as engine:
        path = await started_flow(live_client, SLOW.format(url=gate.url))
        async with live_database.sessions() as session:
            flow = await session.get_one(FlowRecord, UUID(path.rpartition("/")[2]))
            await add_executions(session, flow)
        await accept(live_client, path, "x")
        await wait_for(gate.slow)
        assert (await live_client.delete(path)).status_code == 204
        await until(lambda: is_empty(live_database, engine), interval_seconds=0.02)
        gate.open.set()
        assert not gate.after.is_set()


async def is_empty(database: Database, engine: Engine) -> bool:
    async with database.transaction(read_only=True) as session:
        left = [await count(session, table) for table in (FlowRecord, ExecutionRecord)]
    return left == [0, 0] and not engine._worker.lease_keys


async def test_engine_completes_deletions_of_an_earlier_process(world: World, live_settings: Settings) -> None:
    await world.delete_flow()
    async with running_engine(live_settings, world.database):

        async def is_gone() -> bool:
            return (await world.counts())["flows"] == 1

        await until(is_gone, interval_seconds=0.02)
