"""Failing schedules: invalid ones are disabled with a reason, others are retried."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from structlog.testing import capture_logs

from bloxserver.clock import now
from bloxserver.engine.background.schedule_firing import (
    INITIAL_BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    disable_schedule,
    retry_delay,
)
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowStatus, FlowVersionRecord, TriggerRecord, TriggerType
from bloxserver.queries.triggers import read_due_schedules
from bloxserver.settings import Settings
from tests.clients.loopback import running_server
from tests.engine.notification_installation import Installation, assert_given_up, organism, rename
from tests.factories import create_flow, create_trigger, create_user
from tests.metric_increase import measure_increase
from tests.smtp_server import running_smtp_server

MINUTELY = {"cron": "* * * * *"}
INVALID_CRON = "config.cron: Not a valid cron expression of five fields"


@pytest.fixture
async def installation(live_settings: Settings, live_database: Database) -> AsyncIterator[Installation]:
    async with running_server() as http, running_smtp_server() as smtp:
        installation = Installation(live_settings, live_database, http, smtp)
        async with live_database.sessions() as session:
            installation.user = await create_user(session)
        yield installation


async def schedule(installation: Installation, config: Any, definition: str = organism()) -> TriggerRecord:
    """A schedule of a running flow that is due."""
    async with installation.database.sessions() as session:
        flow = await create_flow(
            session, installation.user, name="Orders", status=FlowStatus.RUNNING, organism_yaml=definition
        )
        values = {"config": config, "name": "Every minute", "next_fire_at": now() - timedelta(seconds=5)}
        return await create_trigger(session, flow, type=TriggerType.SCHEDULE, **values)


async def stored(installation: Installation, trigger: TriggerRecord) -> TriggerRecord:
    async with installation.database.sessions() as session:
        return await session.get_one(TriggerRecord, trigger.id)


async def count_executions(installation: Installation) -> int:
    async with installation.database.sessions() as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) or 0


async def let_retry(installation: Installation) -> None:
    """As if the backoff had passed."""
    async with installation.database.transaction() as session:
        await session.execute(sa.update(TriggerRecord).values(retry_at=now() - timedelta(seconds=1)))


class TestInvalid:
    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"cron": "banana"}, INVALID_CRON),
            ({"cron": "banana", "notes": [0] * 10_000}, INVALID_CRON),
            ({"cron": "0 0 30 2 *"}, INVALID_CRON),
            ({}, "config.cron: A schedule needs a cron expression of five fields"),
            (MINUTELY | {"timezone": "Mars/Base"}, "config.timezone: Not the name of a time zone"),
            (MINUTELY | {"catch_up": "all"}, "config.catch_up: Must be one of: none, last"),
            (MINUTELY | {"payload": "a\0b"}, "config.payload: Must not contain NUL or half a surrogate pair"),
            (MINUTELY | {"payload": {"a": "\ud800"}}, "config.payload: Must not contain NUL or half a surrogate pair"),
            (MINUTELY | {"target": "\0"}, "config.target: Must not contain NUL or half a surrogate pair"),
            ([1], "config: Must be an object"),
        ],
        ids=ascii,
    )
    async def test_invalid_schedule_is_disabled_and_blocks_no_other(
        self, installation: Installation, config: Any, reason: str
    ) -> None:
        invalid = await schedule(installation, config)
        await schedule(installation, MINUTELY)
        with (
            capture_logs() as logs,
            measure_increase("bloxserver_schedule_firings_total", outcome="invalid") as counter,
        ):
            for _ in range(2):
                await fire_due_schedules(installation.database)
        assert await count_executions(installation) == 1
        row = await stored(installation, invalid)
        assert (row.enabled, row.next_fire_at, row.disabled_reason) == (False, None, reason)
        [line] = [line for line in logs if line["event"] == "schedule disabled"]
        assert line["trigger_id"] == str(invalid.id)
        assert line["flow_id"] == str(invalid.flow_id)
        assert line["reason"] == reason
        assert counter.number == 1

    async def test_schedule_corrected_meanwhile_is_not_disabled(self, installation: Installation) -> None:
        trigger = await schedule(installation, {"cron": "banana"})
        async with installation.database.transaction() as session:
            [due] = await read_due_schedules(session, now(), 10)
            await session.execute(sa.update(TriggerRecord).values(config=MINUTELY))
        async with installation.database.transaction() as session:
            assert not await disable_schedule(session, due.trigger, INVALID_CRON, None)
        row = await stored(installation, trigger)
        assert (row.enabled, row.disabled_reason) == (True, None)

    async def test_the_owner_is_notified_by_request_and_by_mail(self, installation: Installation) -> None:
        definition = organism(url=installation.url, email="ops@example.com")
        trigger = await schedule(installation, {"cron": "banana"}, definition)
        before = now()
        await fire_due_schedules(installation.database)
        with capture_logs() as logs:
            assert await installation.notifier().deliver_due() == 2
        [request] = installation.http.received
        body = json.loads(request.body)
        assert before.isoformat() <= body.pop("timestamp").replace("Z", "+00:00") <= now().isoformat()
        assert body == {
            "type": "schedule.disabled",
            "data": {
                "triggerId": str(trigger.id),
                "triggerName": "Every minute",
                "flowId": str(trigger.flow_id),
                "flowName": "Orders",
                "reason": INVALID_CRON,
            },
        }
        assert request.headers["bloxserver-depth"] == "1"
        [mail] = installation.smtp.received
        assert mail.recipients == ["ops@example.com"]
        assert mail.message["Subject"] == 'A schedule of flow "Orders" was disabled'
        text = " ".join(mail.message.get_content().split())
        for part in ('The schedule "Every minute" of the flow "Orders"', INVALID_CRON, str(trigger.id)):
            assert part in text
        assert {line["trigger_id"] for line in logs if line["event"] == "failure notification"} == {str(trigger.id)}
        assert await installation.notifier().deliver_due() == 0

    async def test_notification_uses_the_running_definition(self, installation: Installation) -> None:
        trigger = await schedule(installation, {"cron": "banana"}, organism())
        async with installation.database.transaction() as session:
            version = FlowVersionRecord(flow_id=trigger.flow_id, number=7, organism_yaml=organism(url=installation.url))
            session.add(version)
            await session.flush()
            table = sa.table("flows", sa.column("active_version_id", sa.Uuid))
            await session.execute(sa.update(table).values(active_version_id=version.id))
        await fire_due_schedules(installation.database)
        assert await installation.notifier().deliver_due() == 1
        assert len(installation.http.received) == 1

    async def test_each_disabling_enqueues_one_notification(self, installation: Installation) -> None:
        await schedule(installation, {"cron": "banana"}, organism(url=installation.url))
        for _ in range(2):
            await fire_due_schedules(installation.database)
            async with installation.database.transaction() as session:
                await session.execute(sa.update(TriggerRecord).values(enabled=True))
        assert await installation.notifier().deliver_due() == 2
        first, second = installation.http.received
        assert first.headers["webhook-id"] != second.headers["webhook-id"]

    async def test_notification_does_not_change_when_the_schedule_is_enabled(self, installation: Installation) -> None:
        await schedule(installation, {"cron": "banana"}, organism(url=installation.url))
        await fire_due_schedules(installation.database)
        async with installation.database.transaction() as session:
            await session.execute(sa.update(TriggerRecord).values(enabled=True, disabled_reason=None))
        await installation.notifier().deliver_due()
        [request] = installation.http.received
        assert json.loads(request.body)["data"]["reason"] == INVALID_CRON

    async def test_notification_of_a_removed_recipient_fails(self, installation: Installation) -> None:
        trigger = await schedule(installation, {"cron": "banana"}, organism(url=installation.url))
        await fire_due_schedules(installation.database)
        async with installation.database.transaction() as session:
            flows = sa.table("flows", sa.column("organism_yaml"))
            await session.execute(sa.update(flows).values(organism_yaml=organism()))
        await installation.notifier().deliver_due()
        notice = await installation.notice()
        assert notice.trigger_id == trigger.id
        assert_given_up(notice, 1, "the definition no longer names this recipient")

    @pytest.mark.parametrize("definition", [organism(), "not: [an organism"], ids=["no recipient", "unreadable"])
    async def test_schedule_without_a_recipient_is_disabled_without_a_notification(
        self, installation: Installation, definition: str
    ) -> None:
        trigger = await schedule(installation, {"cron": "banana"}, definition)
        await fire_due_schedules(installation.database)
        assert (await stored(installation, trigger)).disabled_reason == INVALID_CRON
        assert await installation.notices() == []


class TestRetries:
    async def test_unknown_error_keeps_the_schedule_enabled_and_is_logged_once(
        self, installation: Installation
    ) -> None:
        triggers = [await schedule(installation, MINUTELY) for _ in range(2)]
        due_at = [trigger.next_fire_at for trigger in triggers]
        await rename(installation, "usage_records", "elsewhere")
        with capture_logs() as logs:
            for attempt in range(1, 4):
                before = now()
                for _ in range(2):
                    await fire_due_schedules(installation.database)
                for trigger, time in zip(triggers, due_at, strict=True):
                    row = await stored(installation, trigger)
                    assert (row.enabled, row.next_fire_at, row.failed_attempts) == (True, time, attempt)
                    assert row.retry_at is not None
                    delay = timedelta(seconds=INITIAL_BACKOFF_SECONDS) * 2 ** (attempt - 1)
                    assert before + delay <= row.retry_at <= now() + delay * 1.1
                await let_retry(installation)
        failed = [line for line in logs if line["event"] == "schedule failed"]
        assert [line["trigger_id"] for line in failed] == [str(trigger.id) for trigger in triggers]
        assert " at " in failed[0]["error"]

        await rename(installation, "elsewhere", "usage_records")
        await fire_due_schedules(installation.database)
        assert await count_executions(installation) == 2
        for trigger in triggers:
            row = await stored(installation, trigger)
            assert (row.failed_attempts, row.last_error, row.retry_at) == (0, None, None)
            assert row.next_fire_at is not None
            assert row.next_fire_at > now()

    async def test_each_different_error_is_logged(self, installation: Installation) -> None:
        await schedule(installation, MINUTELY)
        with capture_logs() as logs:
            for table in ("usage_records", "executions", "executions"):
                await rename(installation, table, "elsewhere")
                await fire_due_schedules(installation.database)
                await rename(installation, "elsewhere", table)
                await let_retry(installation)
        assert [line["event"] for line in logs].count("schedule failed") == 2

    async def test_transient_error_keeps_the_schedule_enabled(self, installation: Installation) -> None:
        trigger = await schedule(installation, MINUTELY)

        def fail(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
            if "usage_records" in statement:
                raise OSError

        event.listen(installation.database.engine.sync_engine, "before_cursor_execute", fail)
        try:
            await fire_due_schedules(installation.database)
        finally:
            event.remove(installation.database.engine.sync_engine, "before_cursor_execute", fail)
        row = await stored(installation, trigger)
        assert (row.enabled, row.failed_attempts) == (True, 1)
        await let_retry(installation)
        await fire_due_schedules(installation.database)
        assert await count_executions(installation) == 1

    async def test_failing_schedules_do_not_crowd_out_others(self, installation: Installation) -> None:
        """As many as a sweep reads at once have failed and are due for longer."""
        async with installation.database.sessions() as session:
            flow = await create_flow(session, installation.user, status=FlowStatus.RUNNING)
            values = {"type": TriggerType.SCHEDULE, "config": MINUTELY, "retry_at": now() + timedelta(minutes=5)}
            for _ in range(100):
                await create_trigger(session, flow, **values, next_fire_at=now() - timedelta(minutes=1))
        await schedule(installation, MINUTELY)
        await fire_due_schedules(installation.database)
        assert await count_executions(installation) == 1

    def test_delays_double_up_to_a_limit(self) -> None:
        for attempts, seconds in enumerate([5, 10, 20, 40, 80, 160, 320, 600, 600]):
            assert timedelta(seconds=seconds) <= retry_delay(attempts) <= timedelta(seconds=seconds * 1.1)
        assert retry_delay(2**31 - 1).total_seconds() <= MAX_BACKOFF_SECONDS * 1.1
