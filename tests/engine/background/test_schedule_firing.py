"""Firing of schedules: firing times, and one execution per firing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.background.reconcile import reconcile_flows
from bloxserver.engine.background.schedule_firing import fire_schedule
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.models.database import Database
from bloxserver.models.postgres import Timeouts
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from bloxserver.queries.triggers import DueSchedule, read_due_schedules
from bloxserver.queries.usage import period_at
from bloxserver.services.flows import transition_flow
from bloxserver.services.triggers import update_trigger
from bloxserver.settings import Settings
from tests.factories import create_flow, create_trigger, create_user
from tests.lock_waits import wait_for_lock_wait

MINUTELY = {"cron": "* * * * *"}


async def schedule(database: Database, config: dict[str, Any], **values: Any) -> TriggerRecord:
    """A schedule of a running flow of a free user."""
    async with database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=values.pop("status", FlowStatus.RUNNING))
        return await create_trigger(session, flow, type=TriggerType.SCHEDULE, config=config, **values)


async def stored(database: Database, trigger: TriggerRecord) -> TriggerRecord:
    async with database.sessions() as session:
        return await session.get_one(TriggerRecord, trigger.id)


async def executions(database: Database) -> list[ExecutionRecord]:
    async with database.sessions() as session:
        return list(await session.scalars(sa.select(ExecutionRecord).order_by(ExecutionRecord.started_at)))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_new_schedule_is_armed_and_does_not_fire(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY)
    before = now()
    await fire_due_schedules(live_database)
    armed = await stored(live_database, trigger)
    assert armed.next_fire_at is not None
    assert before < armed.next_fire_at <= before + timedelta(seconds=61)
    assert (armed.last_fired_at, await executions(live_database)) == (None, [])


async def test_due_schedule_fires_once_under_concurrency(live_database: Database) -> None:
    config = {**MINUTELY, "payload": {"name": "Ada"}, "target": "greeter"}
    trigger = await schedule(live_database, config, next_fire_at=now() - timedelta(seconds=5))
    await asyncio.gather(*(fire_due_schedules(live_database) for _ in range(5)))
    (execution,) = await executions(live_database)
    assert (execution.trigger_id, execution.trigger_type) == (trigger.id, TriggerType.SCHEDULE)
    assert (execution.input_payload, execution.target) == ('{"name": "Ada"}', "greeter")
    fired = await stored(live_database, trigger)
    assert fired.last_fired_at is not None
    assert fired.next_fire_at is not None
    assert fired.next_fire_at > now()
    async with live_database.sessions() as session:
        assert list(await session.scalars(sa.select(UsageRecord.workflow_runs))) == [1]


async def test_locked_schedule_does_not_block_others(live_settings: Settings, live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    held, other = [
        await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=late)) for late in (9, 5)
    ]
    quick = Database(live_settings, Timeouts(lock=0.2))
    async with live_database.transaction() as holder:
        await holder.execute(sa.select(TriggerRecord).where(TriggerRecord.id == held.id).with_for_update())
        await fire_due_schedules(quick)
        assert [execution.trigger_id for execution in await executions(live_database)] == [other.id]
    await quick.dispose()
    await fire_due_schedules(live_database)
    assert [execution.trigger_id for execution in await executions(live_database)] == [other.id, held.id]


@pytest.mark.parametrize(
    ("catch_up", "hours_late", "fires"),
    [
        (None, 0, True),
        (None, 0.5, True),
        (None, 3, False),
        ("last", 3, True),
        ("last", 0.5, True),
        ("none", 3, False),
        ("none", 0.5, False),
        ("none", 0, True),
    ],
)
async def test_missed_firing_is_caught_up_as_configured(
    live_database: Database, catch_up: str | None, hours_late: float, fires: bool
) -> None:
    moment = now()
    missed = moment - timedelta(hours=hours_late)
    cron = f"{missed.minute} {missed.hour} * * *"
    config = {"cron": cron} | ({"catch_up": catch_up} if catch_up else {})
    await schedule(live_database, config, next_fire_at=missed.replace(second=0, microsecond=0))
    await fire_due_schedules(live_database)
    assert len(await executions(live_database)) == fires


async def test_long_downtime_causes_no_burst(live_database: Database) -> None:
    await schedule(live_database, {**MINUTELY, "catch_up": "last"}, next_fire_at=now() - timedelta(days=3))
    for _ in range(3):
        await fire_due_schedules(live_database)
    assert len(await executions(live_database)) == 1


@pytest.mark.parametrize("values", [{"status": FlowStatus.STOPPED}, {"status": FlowStatus.ERROR}, {"enabled": False}])
async def test_disabled_schedule_or_stopped_flow_does_not_fire(live_database: Database, values: dict[str, Any]) -> None:
    await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5), **values)
    await fire_due_schedules(live_database)
    assert await executions(live_database) == []


async def test_stop_disarms_schedules(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY, next_fire_at=now() + timedelta(seconds=30))
    async with live_database.transaction() as session:
        assert await transition_flow(session, trigger.flow_id, FlowStatus.STOPPING)
    await reconcile_flows(live_database, Settings())
    assert (await stored(live_database, trigger)).next_fire_at is None


async def test_schedule_at_the_run_limit_is_armed_without_an_execution(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5))
    async with live_database.transaction() as session:
        owner = await session.scalar(sa.select(FlowRecord.user_id))
        session.add(UsageRecord(user_id=owner, period_start=period_at(now(), None, None).start, workflow_runs=1_000))
    await fire_due_schedules(live_database)
    after = await stored(live_database, trigger)
    assert after.next_fire_at is not None
    assert after.next_fire_at > now()
    assert await executions(live_database) == []


@pytest.mark.parametrize(
    ("zone", "cron", "missed", "passing", "following"),
    [
        ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:30", "2026-10-25T01:05", "2026-10-26T01:30"),
        ("America/New_York", "30 1 * * *", "2026-11-01T05:30", "2026-11-01T06:05", "2026-11-02T06:30"),
        ("Africa/Cairo", "30 23 * * *", "2026-10-29T20:30", "2026-10-29T21:05", "2026-10-30T21:30"),
        ("America/Santiago", "30 23 * * *", "2026-04-05T02:30", "2026-04-05T03:05", "2026-04-06T03:30"),
    ],
)
async def test_after_downtime_in_a_repeated_hour_there_is_one_execution(
    live_database: Database, zone: str, cron: str, missed: str, passing: str, following: str
) -> None:
    config = {"cron": cron, "timezone": zone, "catch_up": "last"}
    trigger = await schedule(live_database, config, next_fire_at=at(missed))
    for minute in range(0, 40, 3):
        moment = at(passing) + timedelta(minutes=minute)
        async with live_database.transaction() as session:
            for due in await read_due_schedules(session, moment, 10):
                await fire_schedule(session, due, moment)
        assert (await stored(live_database, trigger)).next_fire_at == at(following)
    assert len(await executions(live_database)) == 1


async def test_runs_of_one_schedule_may_overlap(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY)
    for _ in range(2):
        async with live_database.transaction() as session:
            values = {"next_fire_at": now() - timedelta(seconds=5)}
            await session.execute(sa.update(TriggerRecord).where(TriggerRecord.id == trigger.id).values(**values))
        await fire_due_schedules(live_database)
    assert [run.status for run in await executions(live_database)] == [ExecutionStatus.RUNNING] * 2


class TestChangesMeanwhile:
    """A schedule is changed after a sweep has read it and before the sweep arms it."""

    async def due(self, database: Database) -> DueSchedule:
        async with database.transaction(read_only=True) as session:
            [due] = await read_due_schedules(session, now(), 10)
        return due

    async def change(self, database: Database, trigger: TriggerRecord, **changes: Any) -> None:
        async with database.transaction() as session:
            owner = await session.scalar(sa.select(FlowRecord.user_id))
            assert owner is not None
            await update_trigger(session, owner, trigger.flow_id, trigger.id, changes)

    async def fire(self, database: Database, due: DueSchedule) -> bool:
        async with database.transaction() as session:
            return await fire_schedule(session, due, now())

    async def test_unarmed_schedule_is_armed_by_its_new_config(self, live_database: Database) -> None:
        trigger = await schedule(live_database, MINUTELY)
        due = await self.due(live_database)
        config = {"cron": "0 0 1 1 *"}
        await self.change(live_database, trigger, config=config)
        assert not await self.fire(live_database, due)
        assert (await stored(live_database, trigger)).next_fire_at == at(f"{now().year + 1}-01-01T00:00")

    async def test_changed_schedule_that_was_due_does_not_fire(self, live_database: Database) -> None:
        trigger = await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5))
        due = await self.due(live_database)
        await self.change(live_database, trigger, config={"cron": "0 0 1 1 *"})
        assert not await self.fire(live_database, due)
        assert (await stored(live_database, trigger)).next_fire_at is None
        assert await executions(live_database) == []

    async def test_changed_payload_is_sent(self, live_database: Database) -> None:
        """Written directly to the database, so the firing time does not change."""
        trigger = await schedule(
            live_database, MINUTELY | {"payload": "old"}, next_fire_at=now() - timedelta(seconds=5)
        )
        due = await self.due(live_database)
        async with live_database.transaction() as session:
            changed = sa.update(TriggerRecord).where(TriggerRecord.id == trigger.id)
            await session.execute(changed.values(config=MINUTELY | {"payload": "new"}))
        assert await self.fire(live_database, due)
        assert [run.input_payload for run in await executions(live_database)] == ["new"]

    async def test_schedule_of_a_stopped_flow_is_not_armed(self, live_database: Database) -> None:
        trigger = await schedule(live_database, MINUTELY)
        due = await self.due(live_database)
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED))
        assert not await self.fire(live_database, due)
        assert (await stored(live_database, trigger)).next_fire_at is None

    async def test_change_waits_for_a_concurrent_sweep(self, live_database: Database) -> None:
        if live_database.engine.dialect.name == "sqlite":
            pytest.skip("SQLite has one writer")
        trigger = await schedule(live_database, MINUTELY)
        due = await self.due(live_database)
        async with live_database.transaction() as session:
            await fire_schedule(session, due, now())
            change = asyncio.create_task(self.change(live_database, trigger, config={"cron": "0 0 1 1 *"}))
            await wait_for_lock_wait(live_database, change)
        await change
        assert (await stored(live_database, trigger)).next_fire_at is None


class TestApi:
    async def created(self, client: httpx.AsyncClient, kind: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        flow = (await client.post("/api/v1/flows", json={"name": "A flow"})).json()
        path = f"/api/v1/flows/{flow['id']}/triggers"
        trigger = (await client.post(path, json={"type": kind, "name": "t", "config": config})).json()
        return f"{path}/{trigger['id']}", trigger

    async def test_a_trigger_can_be_changed(self, client: httpx.AsyncClient) -> None:
        path, trigger = await self.created(client, "schedule", MINUTELY)
        assert (trigger["enabled"], trigger["nextFireAt"], trigger["lastFiredAt"]) == (True, None, None)
        changed = await client.patch(path, json={"name": "new", "config": {"cron": "0 9 * * *"}, "enabled": False})
        assert changed.status_code == 200
        assert changed.json() == trigger | {"name": "new", "config": {"cron": "0 9 * * *"}, "enabled": False}
        assert (await client.get(path)).json() == changed.json()
        assert (await client.patch(path, json={"name": None})).json() == changed.json()
        refused = await client.patch(path, json={"config": {"cron": "banana", "catch_up": "all"}})
        assert refused.status_code == 422
        assert set(refused.json()["details"]) == {"body.config.cron", "body.config.catch_up"}
        assert (await client.get(path)).json() == changed.json()

    async def test_a_reason_is_shown_until_the_schedule_is_enabled_or_changed(
        self, client: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        path, trigger = await self.created(client, "schedule", MINUTELY)
        assert trigger["disabledReason"] is None
        disabled = {
            "enabled": False,
            "disabled_reason": "config.cron: invalid",
            "failed_attempts": 3,
            "last_error": "x",
        }
        for change, reason in (
            ({"name": "new"}, "config.cron: invalid"),
            ({"enabled": False}, "config.cron: invalid"),
            ({"enabled": True}, None),
            ({"config": {"cron": "0 9 * * *"}}, None),
        ):
            await session.execute(sa.update(TriggerRecord).values(**disabled, retry_at=now()))
            await session.commit()
            changed = await client.patch(path, json=change)
            assert (changed.status_code, changed.json()["disabledReason"]) == (200, reason)
            assert (await client.get(path)).json() == changed.json()
        row = await session.get_one(TriggerRecord, UUID(trigger["id"]), populate_existing=True)
        assert (row.failed_attempts, row.last_error, row.retry_at) == (0, None, None)

    async def test_an_invalid_schedule_can_be_disabled_and_renamed_but_not_enabled(
        self, client: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        path, _ = await self.created(client, "schedule", MINUTELY)
        await session.execute(sa.update(TriggerRecord).values(config={"cron": "banana"}))
        await session.commit()
        assert (await client.patch(path, json={"name": "new"})).status_code == 200
        assert (await client.patch(path, json={"enabled": False})).status_code == 200
        assert (await client.patch(path, json={"enabled": True})).status_code == 422
        assert (await client.get(path)).json()["enabled"] is False

    async def test_upcoming_firings_are_listed(self, client: httpx.AsyncClient) -> None:
        path, _ = await self.created(client, "schedule", {"cron": "0 0 1 1 *"})
        answer = await client.get(f"{path}/upcoming", params={"n": 2})
        years = [now().year + 1, now().year + 2]
        assert answer.json() == {"times": [f"{year}-01-01T00:00:00.000000Z" for year in years]}
        assert len((await client.get(f"{path}/upcoming")).json()["times"]) == 5
        assert (await client.get(f"{path}/upcoming", params={"n": 0})).status_code == 422
        webhook, _ = await self.created(client, "webhook", {})
        assert (await client.get(f"{webhook}/upcoming")).json()["code"] == "trigger_not_a_schedule"

    async def test_a_disabled_webhook_starts_nothing(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
    ) -> None:
        flow = await create_flow(session, dev_user)
        trigger = await create_trigger(session, flow, enabled=False)
        refused = await client.post(f"/webhooks/{trigger.webhook_token}")
        assert (refused.status_code, refused.json()["code"]) == (409, "trigger_disabled")
        listed = await client.get(f"/api/v1/flows/{flow.id}/executions")
        assert listed.json()["total"] == 0
