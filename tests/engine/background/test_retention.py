"""The executions and versions that retention deletes and keeps."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.background.retention import Retention
from bloxserver.engine.background.retention_batches import MAX_ROWS, PruneResult
from bloxserver.models.enums import ExecutionStatus, NotificationChannel
from bloxserver.models.tables import (
    AuditEventRecord,
    ExecutionRecord,
    ExecutionSeriesRecord,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    IdempotencyKeyRecord,
    UserRecord,
)
from tests.engine.retention_world import DAY, SUCCESS, World
from tests.factories import create_flow
from tests.steps import create_step


class TestByAge:
    async def test_expired_execution_is_deleted_with_its_rows(self, world: World) -> None:
        old, young = await world.execution(31), await world.execution(29)
        async with world.database.sessions() as session:
            for execution_id in (old, young):
                execution = await session.get_one(ExecutionRecord, execution_id)
                await create_step(session, execution)
                session.add(FailureNotificationRecord(execution_id=execution_id, channel=NotificationChannel.URL))
                await session.commit()
        assert await world.prune(days=30) == PruneResult(executions=1, steps=1)
        assert await world.left() == {young}
        assert (await world.count(ExecutionStepRecord), await world.count(FailureNotificationRecord)) == (1, 1)
        assert await world.prune(days=30) == PruneResult()

    @pytest.mark.parametrize("status", [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING])
    async def test_expired_execution_is_deleted_with_any_status(self, world: World, status: ExecutionStatus) -> None:
        await world.execution(31, status=status)
        assert await world.prune(days=30) == PruneResult(executions=1)

    async def test_running_execution_is_kept(self, world: World) -> None:
        running = await world.execution(1000, status=ExecutionStatus.RUNNING, completed_at=None)
        odd = await world.execution(1000, status=ExecutionStatus.RUNNING)
        await world.add_steps(running, 3)
        assert await world.retention(days=30, per_flow=1).prune(dry_run=True) == PruneResult()
        assert await world.prune(days=30, per_flow=1) == PruneResult()
        assert await world.left() == {running, odd}
        assert await world.count(ExecutionStepRecord) == 3

    async def test_rows_inserted_by_hand_expire(self, world: World) -> None:
        """Only their times matter, not their ids or the order of insertion."""
        ago = now() - 31 * DAY
        gone = [
            await world.execution(31, completed_at=None),
            await world.execution(31, id=UUID(int=1)),
            await world.execution(31, id=UUID(int=2**128 - 1)),
            await world.execution(31, started_at=ago, completed_at=ago - DAY),
        ]
        kept = {
            await world.execution(31, completed_at=now()),
            await world.execution(0, completed_at=ago),
            await world.execution(-1000, completed_at=ago),
            await world.execution(0, id=UUID(int=3)),
        }
        assert await world.prune(days=30) == PruneResult(executions=len(gone))
        assert await world.left() == kept

    async def test_execution_with_end_before_start_expires_by_its_start(self, world: World) -> None:
        kept = [await world.execution(age, completed_at=now() - 40 * DAY) for age in (1, 2)]
        await world.execution(3)
        assert await world.prune(days=30, per_flow=2) == PruneResult(executions=1)
        assert await world.left() == set(kept)

    async def test_retention_without_limits_deletes_nothing(self, world: World) -> None:
        kept = await world.execution(10_000)
        assert await world.prune(days=0) == PruneResult()
        assert await world.left() == {kept}


class TestByNumber:
    async def test_newest_executions_of_each_flow_are_kept(self, world: World) -> None:
        async with world.database.sessions() as session:
            other = await create_flow(session, world.user)
        mine = [await world.execution(age) for age in (5, 1, 4, 2, 3)]
        running = await world.execution(0, status=ExecutionStatus.RUNNING)
        others = [await world.execution(age, flow=other) for age in (8, 9)]
        assert await world.prune(per_flow=2) == PruneResult(executions=3)
        assert await world.left() == {mine[1], mine[3], running, *others}

    async def test_executions_with_the_same_start_expire_by_id(self, world: World) -> None:
        moment = now()
        same = sorted([await world.execution(started_at=moment, id=uuid4()) for _ in range(5)])
        assert await world.prune(per_flow=2) == PruneResult(executions=3)
        assert await world.left() == set(same[3:])

    async def test_either_limit_expires_an_execution(self, world: World) -> None:
        await world.execution(40)
        await world.execution(2)
        kept = await world.execution(1)
        assert await world.prune(days=30, per_flow=1) == PruneResult(executions=2)
        assert await world.left() == {kept}
        await world.execution(40)
        assert await world.prune(days=30, per_flow=5) == PruneResult(executions=1)


class TestWhatOthersNeed:
    async def test_called_execution_is_kept_while_its_caller_runs(self, world: World) -> None:
        caller = await world.execution(40, status=ExecutionStatus.RUNNING)
        ended = await world.execution(40)
        called = await world.execution(40, parent_id=caller, parent_key="a:1")
        of_ended = await world.execution(40, parent_id=ended, parent_key="a:1")
        orphan = await world.execution(40, parent_id=uuid4(), parent_key="a:1")
        assert await world.prune(days=30) == PruneResult(executions=3)
        assert await world.left() == {caller, called}
        assert {ended, of_ended, orphan}.isdisjoint(await world.left())
        async with world.database.transaction() as session:
            await session.execute(sa.update(ExecutionRecord).values(status=SUCCESS))
        assert await world.prune(days=30) == PruneResult(executions=2)

    async def test_execution_with_a_pending_notification_is_kept(self, world: World) -> None:
        execution = await world.execution(40, status=ExecutionStatus.ERROR)
        await world.execution(1)
        async with world.database.sessions() as session:
            session.add(
                FailureNotificationRecord(execution_id=execution, channel=NotificationChannel.URL, due_at=now())
            )
            await session.commit()
        assert await world.prune(days=30, per_flow=1) == PruneResult()
        async with world.database.transaction() as session:
            await session.execute(sa.update(FailureNotificationRecord).values(due_at=None))
        assert await world.prune(days=30, per_flow=1) == PruneResult(executions=1)

    async def test_deleted_execution_is_neither_found_nor_counted(
        self, world: World, live_client: httpx.AsyncClient
    ) -> None:
        user_id = (await live_client.get("/api/v1/me")).json()["id"]
        async with world.database.sessions() as session:
            flow = await create_flow(session, await session.get_one(UserRecord, UUID(user_id)))
        gone = await world.execution(40, flow=flow)
        kept = await world.execution(1, flow=flow, retry_of=gone)
        await world.prune(days=30)
        path = f"/api/v1/flows/{flow.id}/executions"
        for answer in (
            await live_client.get(f"{path}/{gone}"),
            await live_client.get(f"{path}/{gone}/steps"),
            await live_client.post(f"{path}/{gone}/retry"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "execution_not_found")
        assert (await live_client.get(path)).json()["total"] == 1
        assert (await live_client.get(f"{path}/stats")).json()["executionsTotal"] == 1
        assert (await live_client.get(f"{path}/{kept}")).json()["retryOf"] == str(gone)

    async def test_locked_execution_is_kept_until_the_next_run(self, world: World, backend: str) -> None:
        """As a retry locks it. SQLite has one writer, so retention waits there."""
        held, free = await world.execution(40), await world.execution(40)
        await world.add_steps(held, 2)
        if backend == "postgresql":
            async with world.database.transaction() as session:
                row = sa.select(ExecutionRecord).where(ExecutionRecord.id == held)
                await session.execute(row.with_for_update(read=True, key_share=True))
                assert await world.prune(days=30) == PruneResult(executions=1)
            assert await world.left() == {held}
            assert await world.count(ExecutionStepRecord) == 2
        await world.prune(days=30)
        assert await world.left() == set()
        assert free != held


class TestVersions:
    async def test_newest_versions_are_kept(self, world: World) -> None:
        async with world.database.sessions() as session:
            other = await create_flow(session, world.user)
        await world.add_versions(range(1, 31))
        await world.add_versions([101, 102], flow=other)
        assert await world.retention(versions=5).prune(dry_run=True) == PruneResult(versions=25)
        assert await world.prune(versions=5) == PruneResult(versions=25)
        assert await world.versions() == [26, 27, 28, 29, 30, 101, 102]
        assert await world.prune(versions=0) == PruneResult()

    async def test_versions_in_use_are_kept(self, world: World) -> None:
        """The active version, the latest version, and versions of executions."""
        ids = await world.add_versions(range(1, 11))
        await world.add_versions([11], active_version_id=ids[2], active_version=3, latest_version=5)
        await world.execution(1, flow_version_id=ids[5], flow_version=6)
        await world.execution(1, flow_version_id=ids[6], flow_version=7, status=ExecutionStatus.RUNNING)
        assert await world.prune(versions=2) == PruneResult(versions=5)
        assert await world.versions() == [3, 5, 6, 7, 10, 11]

    async def test_version_is_deleted_after_its_last_execution(self, world: World) -> None:
        ids = await world.add_versions(range(1, 4))
        for number in (0, 0, 1):
            await world.execution(40, flow_version_id=ids[number])
        kept = await world.execution(1, flow_version_id=ids[1])
        assert await world.prune(days=30, versions=1) == PruneResult(executions=3, versions=1)
        assert (await world.left(), await world.versions()) == ({kept}, [2, 3])

    async def test_versions_of_a_recently_changed_flow_are_kept(self, world: World) -> None:
        """A request that has read the previous active version may still store an execution of it."""
        await world.add_versions(range(1, 4), updated_at=now() - timedelta(seconds=30))
        assert await world.prune(versions=1) == PruneResult()
        await world.add_versions([4])
        assert await world.prune(versions=1) == PruneResult(versions=3)

    async def test_deleted_version_is_not_found(self, world: World, live_client: httpx.AsyncClient) -> None:
        created = (await live_client.post("/api/v1/flows", json={"name": "A flow"})).json()
        path = f"/api/v1/flows/{created['id']}"
        for number in range(3):
            changed = await live_client.patch(path, json={"canvasState": {"nodes": [], "edges": [], "number": number}})
            assert changed.json()["latestVersion"] == number + 2
        async with world.database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(updated_at=now() - timedelta(hours=1)))
        assert await world.prune(versions=2) == PruneResult(versions=2)
        versions = (await live_client.get(f"{path}/versions")).json()
        assert ([version["number"] for version in versions["items"]], versions["total"]) == ([4, 3], 2)
        for answer in (
            await live_client.get(f"{path}/versions/1"),
            await live_client.post(f"{path}/versions/1/restore"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "version_not_found")
        assert (await live_client.patch(path, json={"organismYaml": "new"})).json()["latestVersion"] == 5


class TestModes:
    async def test_executions_of_each_mode_are_kept(self, world: World) -> None:
        ids = {mode: [await world.execution(day, mode=mode) for day in range(4)] for mode in ("normal", "test")}
        assert await world.retention(per_flow=2).prune(dry_run=True) == PruneResult(executions=4)
        assert await world.prune(per_flow=2) == PruneResult(executions=4)
        assert await world.left() == {*ids["normal"][:2], *ids["test"][:2]}

    async def test_buckets_of_deleted_executions_are_deleted(self, world: World, backend: str) -> None:
        """Transactions that ran at the same time counted in several rows, and each row alone is not zero."""
        if backend == "sqlite":
            pytest.skip("SQLite has one writer")
        kept = await world.execution(1)
        async with world.database.sessions() as first, world.database.sessions() as second:
            for session in (first, second):
                started_at = now() - 40 * DAY
                values = {"flow_id": world.flow.id, "trigger_type": "manual", "status": SUCCESS}
                await session.execute(sa.insert(ExecutionRecord).values(values | {"started_at": started_at}))
            await first.commit()
            await second.commit()
        assert await world.count(ExecutionSeriesRecord) == 6
        assert (await world.prune(days=30)).executions == 2
        assert await world.left() == {kept}
        assert await world.count(ExecutionSeriesRecord) == 2


async def test_idempotency_keys_expire(world: World) -> None:
    async with world.database.transaction() as session:
        for days in (0, 7.9, 8.1, 30):
            values = {"owner_id": world.user.id, "key_hash": bytes([int(days * 2)]), "request_hash": b"", "result": "x"}
            session.add(IdempotencyKeyRecord(**values, created_at=now() - days * DAY))
    assert await world.retention().prune(dry_run=True) == PruneResult()
    assert await world.prune() == PruneResult(others=2)
    assert await world.count(IdempotencyKeyRecord) == 2


class TestAuditEvents:
    async def test_expired_events_are_deleted(self, world: World) -> None:
        await self.add(world, *[31] * (MAX_ROWS + 1), 29, 0)
        retention = self.retention(world, 30)
        assert await retention.prune(dry_run=True) == PruneResult(audit_events=MAX_ROWS + 1)
        assert await world.count(AuditEventRecord) == MAX_ROWS + 3
        assert await retention.prune() == PruneResult(audit_events=MAX_ROWS + 1)
        assert await world.count(AuditEventRecord) == 2
        assert await retention.prune() == PruneResult()

    async def test_events_are_kept_for_a_year_by_default(self, world: World) -> None:
        await self.add(world, 364, 366)
        assert await world.prune() == PruneResult(audit_events=1)

    async def test_events_are_kept_forever_with_0(self, world: World) -> None:
        await self.add(world, 36_500)
        for dry_run in (True, False):
            assert await self.retention(world, 0).prune(dry_run=dry_run) == PruneResult()

    def retention(self, world: World, days: int) -> Retention:
        settings = world.settings.model_copy(update={"audit_retention_days": days})
        return Retention(settings, world.database, min_interval_seconds=0)

    async def add(self, world: World, *ages: int) -> None:
        """Add events of these ages in days."""
        values = {"user_id": world.user.id, "actor": "user", "actor_id": "a", "action": "a", "resource_id": "r"}
        async with world.database.transaction() as session:
            rows = [{**values, "created_at": now() - days * DAY} for days in ages]
            await session.execute(sa.insert(AuditEventRecord), rows)
