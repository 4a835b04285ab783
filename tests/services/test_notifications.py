"""Failure notifications that are enqueued for the recipients of a definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.enums import NotificationChannel, TriggerType
from bloxserver.models.tables import ExecutionRecord, FailureNotificationRecord, TriggerRecord
from bloxserver.organism.model import FailureNotification
from bloxserver.services.notifications import enqueue_disabled_notification, enqueue_failure_notification
from tests.factories import create_execution, create_flow, create_trigger, create_user

URL, EMAIL = NotificationChannel.URL, NotificationChannel.EMAIL
BOTH = FailureNotification(url="https://example.com/hook", email="ops@example.com")


@pytest.fixture
async def execution(session: AsyncSession) -> ExecutionRecord:
    return await create_execution(session, await create_flow(session, await create_user(session)))


@pytest.fixture
async def schedule(session: AsyncSession) -> TriggerRecord:
    flow = await create_flow(session, await create_user(session))
    return await create_trigger(session, flow, type=TriggerType.SCHEDULE, config={"cron": "* * * * *"})


async def rows(session: AsyncSession) -> list[FailureNotificationRecord]:
    return list(await session.scalars(sa.select(FailureNotificationRecord)))


@pytest.mark.parametrize(
    ("recipients", "channels"),
    [
        (BOTH, {URL, EMAIL}),
        (FailureNotification(url=BOTH.url), {URL}),
        (FailureNotification(email=BOTH.email), {EMAIL}),
        (FailureNotification(), set()),
    ],
)
async def test_failed_execution_has_a_due_notification_for_each_recipient(
    session: AsyncSession,
    execution: ExecutionRecord,
    recipients: FailureNotification,
    channels: set[NotificationChannel],
) -> None:
    before = now()
    await enqueue_failure_notification(session, execution.id, recipients)
    enqueued = await rows(session)
    assert {row.channel for row in enqueued} == channels
    assert len(enqueued) == len(channels)
    for row in enqueued:
        assert (row.execution_id, row.trigger_id, row.reason, row.attempts) == (execution.id, None, None, 0)
        assert row.due_at is not None
        assert before <= row.due_at <= now()


async def test_execution_that_is_notified_of_again_keeps_its_notifications(
    session: AsyncSession, execution: ExecutionRecord
) -> None:
    await enqueue_failure_notification(session, execution.id, FailureNotification(url=BOTH.url))
    [first] = await rows(session)
    await enqueue_failure_notification(session, execution.id, BOTH)
    assert {row.channel: row.id == first.id for row in await rows(session)} == {URL: True, EMAIL: False}


async def test_disabled_schedule_has_notifications_with_the_reason(
    session: AsyncSession, schedule: TriggerRecord
) -> None:
    await enqueue_disabled_notification(session, schedule.id, "the cron expression is invalid", BOTH)
    enqueued = await rows(session)
    assert {row.channel for row in enqueued} == {URL, EMAIL}
    for row in enqueued:
        assert (row.trigger_id, row.execution_id) == (schedule.id, None)
        assert row.reason == "the cron expression is invalid"


async def test_schedule_that_is_disabled_twice_has_notifications_for_both_times(
    session: AsyncSession, schedule: TriggerRecord
) -> None:
    for reason in ("first", "second"):
        await enqueue_disabled_notification(session, schedule.id, reason, FailureNotification(url=BOTH.url))
    assert sorted(row.reason or "" for row in await rows(session)) == ["first", "second"]


@pytest.mark.parametrize("recipients", [BOTH, FailureNotification()])
async def test_engine_is_woken_only_if_a_notification_is_enqueued(
    live_database: Database, recipients: FailureNotification
) -> None:
    woken: list[frozenset[WakeReason]] = []
    remove: Callable[[], None] = live_database.on_commit(woken.append)
    async with live_database.transaction() as session:
        execution = await create_execution(session, await create_flow(session, await create_user(session)))
        await enqueue_failure_notification(session, execution.id, recipients)
    remove()
    assert woken == ([frozenset({WakeReason.NOTIFICATION})] if recipients is BOTH else [])
