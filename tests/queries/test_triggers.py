"""Reads of triggers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    Tier,
    TriggerRecord,
    TriggerType,
    UserRecord,
)
from bloxserver.plans import PLANS
from bloxserver.queries.triggers import (
    MAX_TOKEN_LENGTH,
    lock_due_schedule,
    read_due_schedules,
    read_next_fire,
    read_running_definition,
    read_trigger,
    read_triggers,
    read_webhook,
)
from tests.factories import create_flow, create_trigger, create_user

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def user(session: AsyncSession) -> UserRecord:
    return await create_user(session, tier=Tier.PRO)


async def create_schedule(session: AsyncSession, flow: FlowRecord, **values: Any) -> TriggerRecord:
    return await create_trigger(session, flow, type=TriggerType.SCHEDULE, config={"cron": "* * * * *"}, **values)


async def test_triggers_of_a_flow_are_listed_from_the_oldest(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    moment = now()
    newer = await create_trigger(session, flow, created_at=moment)
    older = await create_schedule(session, flow, created_at=moment - MINUTE)
    await create_trigger(session, flow, deleted_at=moment)
    await create_trigger(session, await create_flow(session, user))
    assert [trigger.id for trigger in (await read_triggers(session, user.id, flow.id)).triggers] == [older.id, newer.id]


async def test_triggers_of_another_users_flow_are_not_found(session: AsyncSession, flow: FlowRecord) -> None:
    other = await create_user(session)
    with pytest.raises(NotFound) as error:
        await read_triggers(session, other.id, flow.id)
    assert (error.value.code, error.value.status) == ("flow_not_found", 404)


@pytest.mark.parametrize("lock", [False, True])
async def test_trigger_is_found_only_in_its_flow_and_for_its_owner(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, lock: bool
) -> None:
    trigger, deleted = await create_trigger(session, flow), await create_trigger(session, flow, deleted_at=now())
    other, other_flow = await create_user(session), await create_flow(session, user)
    assert (await read_trigger(session, user.id, flow.id, trigger.id, lock=lock)).id == trigger.id
    for user_id, flow_id, trigger_id in (
        (other.id, flow.id, trigger.id),
        (user.id, other_flow.id, trigger.id),
        (user.id, flow.id, deleted.id),
        (user.id, flow.id, uuid4()),
    ):
        with pytest.raises(NotFound) as error:
            await read_trigger(session, user_id, flow_id, trigger_id, lock=lock)
        assert (error.value.code, error.value.status) == ("trigger_not_found", 404)


async def test_webhook_is_read_with_its_flow_and_owner(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user, name="Orders")
    webhook = await create_trigger(session, flow, webhook_token="the-token", config={"target": "a"}, enabled=False)
    row = await read_webhook(session, "the-token")
    assert (row.trigger_id, row.trigger_name, row.config, row.enabled) == (
        webhook.id,
        "A trigger",
        {"target": "a"},
        False,
    )
    assert (row.flow_id, row.flow_name, row.flow_status) == (flow.id, "Orders", FlowStatus.RUNNING)
    assert (row.user_id, row.tier, row.plan) == (user.id, Tier.PRO, PLANS["pro"])


async def test_large_config_of_a_webhook_is_read_as_an_object(session: AsyncSession, flow: FlowRecord) -> None:
    config = {"target": "a", "notes": [0] * 10_000}
    await create_trigger(session, flow, webhook_token="the-token", config=config)
    assert (await read_webhook(session, "the-token")).config == config


async def test_webhook_that_was_deleted_or_whose_flow_was_deleted_is_not_found(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    await create_trigger(session, flow, webhook_token="deleted", deleted_at=now())
    deleted_flow = await create_flow(session, user, deleted_at=now())
    await create_trigger(session, deleted_flow, webhook_token="of-a-deleted-flow")
    await create_schedule(session, flow, webhook_token="of-a-schedule")
    for token in ("deleted", "of-a-deleted-flow", "of-a-schedule", "unknown"):
        with pytest.raises(NotFound) as error:
            await read_webhook(session, token)
        assert (error.value.code, error.value.status) == ("webhook_not_found", 404)


@pytest.mark.parametrize("token", ["", "a\0b", "\ud800", "x" * MAX_TOKEN_LENGTH, "x" * (MAX_TOKEN_LENGTH + 1)])
async def test_token_that_no_webhook_can_have_is_not_found(session: AsyncSession, flow: FlowRecord, token: str) -> None:
    await create_trigger(session, flow)
    with pytest.raises(NotFound, match="Webhook not found"):
        await read_webhook(session, token)


async def test_due_schedules_are_those_that_can_be_fired_or_armed(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    moment = now()
    due = {"next_fire_at": moment - MINUTE}
    expected = {
        (await create_schedule(session, flow)).id,
        (await create_schedule(session, flow, **due)).id,
        (await create_schedule(session, flow, **due, retry_at=moment)).id,
        (await create_schedule(session, flow, next_fire_at=moment)).id,
    }
    await create_schedule(session, flow, next_fire_at=moment + MINUTE)
    await create_schedule(session, flow, **due, retry_at=moment + MINUTE)
    await create_schedule(session, flow, **due, enabled=False)
    await create_schedule(session, flow, **due, deleted_at=moment)
    await create_schedule(session, await create_flow(session, user, status=FlowStatus.STOPPED), **due)
    await create_schedule(session, await create_flow(session, user, deleted_at=moment), **due)
    await create_trigger(session, flow, **due)
    found = await read_due_schedules(session, moment, 20)
    assert {schedule.trigger.trigger_id for schedule in found} == expected


async def test_due_schedules_are_limited_from_the_one_that_is_due_the_longest(
    session: AsyncSession, flow: FlowRecord
) -> None:
    moment = now()
    second, third, first = [
        await create_schedule(session, flow, next_fire_at=moment - age * MINUTE) for age in (2, 1, 3)
    ]
    found = await read_due_schedules(session, moment, 2)
    assert [schedule.trigger.trigger_id for schedule in found] == [first.id, second.id]
    assert [schedule.next_fire_at for schedule in found] == [first.next_fire_at, second.next_fire_at]
    assert third.id not in {schedule.trigger.trigger_id for schedule in found}


async def test_schedule_that_is_no_longer_due_is_not_locked(session: AsyncSession, flow: FlowRecord) -> None:
    moment = now()
    schedule = await create_schedule(session, flow, next_fire_at=moment)
    locked = await lock_due_schedule(session, schedule.id, moment)
    assert locked is not None
    assert (locked.next_fire_at, locked.trigger.trigger_id) == (moment, schedule.id)
    assert await lock_due_schedule(session, schedule.id, moment - MINUTE) is None
    assert await lock_due_schedule(session, uuid4(), moment) is None


async def test_schedule_that_another_transaction_locked_is_skipped(live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    moment = now()
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        schedule = await create_schedule(session, flow, next_fire_at=moment)
    async with live_database.transaction() as first, live_database.transaction() as second:
        assert await lock_due_schedule(first, schedule.id, moment) is not None
        assert await lock_due_schedule(second, schedule.id, moment) is None


async def test_running_definition_is_that_of_the_active_version(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user, organism_yaml="current")
    version = FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="active")
    session.add(version)
    await session.commit()
    assert await read_running_definition(session, flow.id) == "current"
    flow.active_version_id = version.id
    await session.commit()
    assert await read_running_definition(session, flow.id) == "active"
    flow.deleted_at = now()
    await session.commit()
    assert await read_running_definition(session, flow.id) is None


async def test_next_fire_is_the_earliest_after_the_moment(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    moment = now()
    assert await read_next_fire(session, moment) is None
    for minutes in (0, 3, 2):
        await create_schedule(session, flow, next_fire_at=moment + minutes * MINUTE)
    await create_schedule(session, flow, next_fire_at=moment + MINUTE, enabled=False)
    stopped = await create_flow(session, user, status=FlowStatus.STOPPED)
    await create_schedule(session, stopped, next_fire_at=moment + MINUTE)
    assert await read_next_fire(session, moment) == moment + 2 * MINUTE
    assert await read_next_fire(session, moment + 3 * MINUTE) is None
