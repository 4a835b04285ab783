"""Schedules: when they fire, and that each firing is one execution."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.background.reconcile import reconcile_flows
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.models.database import Database
from bloxserver.models.postgres import Waits
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from bloxserver.queries.usage import period_at
from bloxserver.services.flows import transition_flow
from bloxserver.settings import Settings
from tests.factories import create_flow, create_trigger, create_user

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
        return list(await session.scalars(sa.select(ExecutionRecord)))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_a_new_schedule_gets_its_time_and_does_not_fire(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY)
    before = now()
    await fire_due_schedules(live_database)
    armed = await stored(live_database, trigger)
    assert armed.next_fire_at is not None
    assert before < armed.next_fire_at <= before + timedelta(seconds=61)
    assert (armed.last_fired_at, await executions(live_database)) == (None, [])


async def test_a_due_schedule_fires_once_however_many_look(live_database: Database) -> None:
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


async def test_a_locked_schedule_keeps_no_other_from_firing(live_settings: Settings, live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    held, other = [
        await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=late)) for late in (9, 5)
    ]
    quick = Database(live_settings, Waits(lock=0.2))
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
async def test_a_missed_firing_is_made_up_for_as_configured(
    live_database: Database, catch_up: str | None, hours_late: float, fires: bool
) -> None:
    moment = now()
    missed = moment - timedelta(hours=hours_late)
    cron = f"{missed.minute} {missed.hour} * * *"
    config = {"cron": cron} | ({"catch_up": catch_up} if catch_up else {})
    await schedule(live_database, config, next_fire_at=missed.replace(second=0, microsecond=0))
    await fire_due_schedules(live_database)
    assert len(await executions(live_database)) == fires


async def test_a_long_silence_brings_no_burst(live_database: Database) -> None:
    await schedule(live_database, {**MINUTELY, "catch_up": "last"}, next_fire_at=now() - timedelta(days=3))
    for _ in range(3):
        await fire_due_schedules(live_database)
    assert len(await executions(live_database)) == 1


@pytest.mark.parametrize("values", [{"status": FlowStatus.STOPPED}, {"status": FlowStatus.ERROR}, {"enabled": False}])
async def test_it_is_silent_while_its_flow_does_not_run_or_it_is_off(
    live_database: Database, values: dict[str, Any]
) -> None:
    await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5), **values)
    await fire_due_schedules(live_database)
    assert await executions(live_database) == []


async def test_a_stop_takes_the_time_away(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY, next_fire_at=now() + timedelta(seconds=30))
    async with live_database.transaction() as session:
        assert await transition_flow(session, trigger.flow_id, FlowStatus.STOPPING)
    await reconcile_flows(live_database, Settings())
    assert (await stored(live_database, trigger)).next_fire_at is None


async def test_one_at_the_run_limit_goes_on_without_an_execution(live_database: Database) -> None:
    trigger = await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5))
    async with live_database.transaction() as session:
        owner = await session.scalar(sa.select(FlowRecord.user_id))
        session.add(UsageRecord(user_id=owner, period_start=period_at(now(), None, None).start, workflow_runs=1_000))
    await fire_due_schedules(live_database)
    after = await stored(live_database, trigger)
    assert after.next_fire_at is not None
    assert after.next_fire_at > now()
    assert await executions(live_database) == []


async def test_one_that_cannot_fire_is_switched_off_and_keeps_no_other_from_firing(live_database: Database) -> None:
    broken = await schedule(live_database, {"cron": "banana"}, next_fire_at=now() - timedelta(minutes=1))
    await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5))
    await fire_due_schedules(live_database)
    assert len(await executions(live_database)) == 1
    assert (await stored(live_database, broken)).enabled is False


@pytest.mark.parametrize("config", [{"target": "t" * 300}, {"payload": "a\0b"}, {"payload": "\ud800"}])
async def test_one_that_fails_keeps_no_other_from_firing(live_database: Database, config: dict[str, Any]) -> None:
    """Written by hand: the API refuses such payloads."""
    await schedule(live_database, MINUTELY | config, next_fire_at=now() - timedelta(seconds=9))
    sound = await schedule(live_database, MINUTELY, next_fire_at=now() - timedelta(seconds=5))
    await fire_due_schedules(live_database)
    assert sound.id in {execution.trigger_id for execution in await executions(live_database)}


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

    async def test_upcoming_firings_are_told(self, client: httpx.AsyncClient) -> None:
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
