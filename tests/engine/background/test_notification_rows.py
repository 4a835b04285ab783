"""Rows and contents of failure notifications."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.background.notification_rows import (
    ClaimedNotification,
    DueNotification,
    Failure,
    claim_notification,
    end_attempt,
    event_of,
    mail_of,
    read_due_notifications,
    read_failure,
)
from bloxserver.ids import new_id
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.enums import ExecutionStatus, NotificationChannel, TriggerType
from bloxserver.models.tables import (
    ExecutionRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVersionRecord,
    UserRecord,
)
from bloxserver.organism.model import FailureNotification
from bloxserver.services.notifications import enqueue_failure_notification
from tests.factories import create_execution, create_flow, create_user

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
BOTH = FailureNotification(url="https://example.com/{{ secrets.HOOK }}", email="ops@example.com")
FAILURE = Failure(
    execution_id=new_id(),
    flow_id=new_id(),
    flow_name="Orders",
    status=ExecutionStatus.ERROR,
    error_message="fetch: api.example.com answered 500 Internal Server Error",
    started_at=START,
    completed_at=START + timedelta(seconds=90),
    trigger_type=TriggerType.WEBHOOK,
    flow_version=3,
    depth=0,
    user_id=new_id(),
    organism_yaml="",
)


async def failed(database: Database, user: UserRecord | None = None, **values: Any) -> ExecutionRecord:
    async with database.sessions() as session:
        flow = await create_flow(session, user or await create_user(session))
        return await create_execution(session, flow, status=ExecutionStatus.ERROR, **values)


async def note(database: Database, execution: ExecutionRecord, notice: FailureNotification = BOTH) -> None:
    async with database.transaction() as session:
        await enqueue_failure_notification(session, execution.id, notice)


async def rows(database: Database) -> list[FailureNotificationRecord]:
    async with database.sessions() as session:
        return list(
            await session.scalars(sa.select(FailureNotificationRecord).order_by(FailureNotificationRecord.channel))
        )


async def claim(database: Database, due: DueNotification, until: datetime) -> ClaimedNotification | None:
    async with database.transaction() as session:
        return await claim_notification(session, due, until)


async def due_at(database: Database, moment: datetime, limit: int = 100) -> list[DueNotification]:
    async with database.transaction(read_only=True) as session:
        return await read_due_notifications(session, moment, limit)


class TestNoting:
    @pytest.mark.parametrize(
        ("notice", "channels"),
        [
            (BOTH, [NotificationChannel.EMAIL, NotificationChannel.URL]),
            (FailureNotification(url="https://example.com"), [NotificationChannel.URL]),
            (FailureNotification(email="ops@example.com"), [NotificationChannel.EMAIL]),
            (FailureNotification(), []),
        ],
    )
    async def test_each_recipient_has_a_row(
        self, live_database: Database, notice: FailureNotification, channels: list[NotificationChannel]
    ) -> None:
        execution = await failed(live_database)
        before = now()
        await note(live_database, execution, notice)
        noted = await rows(live_database)
        assert [row.channel for row in noted] == channels
        for row in noted:
            assert (row.execution_id, row.attempts) == (execution.id, 0)
            assert row.due_at is not None
            assert before <= row.due_at <= now()
            assert (row.delivered_at, row.error_message) == (None, None)

    async def test_enqueuing_twice_changes_nothing(self, live_database: Database) -> None:
        """A transaction is repeated if the answer to its commit was lost."""
        execution = await failed(live_database)
        await note(live_database, execution)
        first = [(row.id, row.due_at) for row in await rows(live_database)]
        await note(live_database, execution)
        assert [(row.id, row.due_at) for row in await rows(live_database)] == first

    async def test_enqueued_notification_wakes_the_engine(self, live_database: Database) -> None:
        woken: list[frozenset[WakeReason]] = []
        execution = await failed(live_database)
        unlisten = live_database.on_commit(woken.append)
        await note(live_database, execution, FailureNotification())
        assert woken == []
        await note(live_database, execution)
        assert woken == [{WakeReason.NOTIFICATION}]
        unlisten()

    async def test_notification_is_deleted_with_its_flow(self, live_database: Database) -> None:
        await note(live_database, await failed(live_database))
        async with live_database.transaction() as session:
            await session.execute(sa.delete(FlowRecord))
        assert await rows(live_database) == []


class TestClaiming:
    async def test_only_due_notifications_are_read(self, live_database: Database) -> None:
        await note(live_database, await failed(live_database))
        email, url = await rows(live_database)
        async with live_database.transaction() as session:
            await session.execute(
                sa.update(FailureNotificationRecord).where(FailureNotificationRecord.id == email.id).values(due_at=None)
            )
        assert url.due_at is not None
        assert await due_at(live_database, url.due_at) == [DueNotification(url.id, url.due_at)]
        assert await due_at(live_database, url.due_at - timedelta(microseconds=1)) == []

    async def test_due_notifications_rotate_between_users(self, live_database: Database) -> None:
        """One user has more notifications than the other, including the oldest ones."""
        async with live_database.sessions() as session:
            users = [await create_user(session), await create_user(session)]
        for user, count in zip(users, (5, 2), strict=True):
            for _ in range(count):
                await note(
                    live_database, await failed(live_database, user), FailureNotification(url="https://example.com")
                )
        due = await due_at(live_database, now(), 4)
        async with live_database.sessions() as session:
            owners = await session.execute(
                sa.select(FailureNotificationRecord.id, FlowRecord.user_id)
                .join(ExecutionRecord, ExecutionRecord.id == FailureNotificationRecord.execution_id)
                .join(FlowRecord, FlowRecord.id == ExecutionRecord.flow_id)
            )
        owner_of = {row.id: row.user_id for row in owners}
        assert [owner_of[notice.id] for notice in due] == [users[0].id, users[1].id, users[0].id, users[1].id]

    async def test_concurrent_claims_succeed_once(self, live_database: Database) -> None:
        execution = await failed(live_database)
        await note(live_database, execution, FailureNotification(url="https://example.com"))
        [due] = await due_at(live_database, now())
        until = now() + timedelta(minutes=5)
        claims = await asyncio.gather(*(claim(live_database, due, until) for _ in range(20)))
        assert [each for each in claims if each is not None] == [
            ClaimedNotification(due.id, execution.id, None, None, NotificationChannel.URL, 1, until)
        ]
        assert await due_at(live_database, now()) == []
        # The claiming process may have stopped, so the notification is due again.
        again = await due_at(live_database, until)
        assert again == [DueNotification(due.id, until)]

    async def test_expired_claim_records_no_result(self, live_database: Database) -> None:
        await note(live_database, await failed(live_database), FailureNotification(url="https://example.com"))
        [due] = await due_at(live_database, now())
        first = await claim(live_database, due, now() + timedelta(minutes=5))
        assert first is not None
        second = await claim(live_database, DueNotification(due.id, first.until), first.until + timedelta(minutes=5))
        assert second is not None
        assert second.attempts == 2
        async with live_database.transaction() as session:
            await end_attempt(session, first, error="too late")
        [row] = await rows(live_database)
        assert (row.due_at, row.error_message) == (second.until, None)
        async with live_database.transaction() as session:
            await end_attempt(session, second)
        [row] = await rows(live_database)
        assert (row.due_at, row.error_message) == (None, None)
        assert row.delivered_at is not None


class TestContents:
    async def test_failure_has_the_definition_that_the_execution_ran(self, live_database: Database) -> None:
        async with live_database.sessions() as session:
            flow = await create_flow(session, await create_user(session), name="Orders", organism_yaml="edited")
            version = FlowVersionRecord(flow_id=flow.id, number=3, organism_yaml="started")
            session.add(version)
            await session.flush()
            versioned = await create_execution(session, flow, flow_version_id=version.id, flow_version=3, depth=2)
            other = await create_execution(session, flow)
            failure = await read_failure(session, versioned.id)
            assert failure is not None
            assert (failure.execution_id, failure.flow_id, failure.user_id) == (versioned.id, flow.id, flow.user_id)
            assert (failure.flow_name, failure.flow_version, failure.depth) == ("Orders", 3, 2)
            assert failure.organism_yaml == "started"
            unversioned = await read_failure(session, other.id)
            assert unversioned is not None
            assert unversioned.organism_yaml == "edited"
            assert await read_failure(session, new_id()) is None

    def test_event_describes_the_failure(self) -> None:
        assert json.loads(event_of(FAILURE)) == {
            "type": "execution.failed",
            "timestamp": "2026-01-02T03:05:35.678901Z",
            "data": {
                "executionId": str(FAILURE.execution_id),
                "flowId": str(FAILURE.flow_id),
                "flowName": "Orders",
                "status": "error",
                "errorMessage": "fetch: api.example.com answered 500 Internal Server Error",
                "startedAt": "2026-01-02T03:04:05.678901Z",
                "completedAt": "2026-01-02T03:05:35.678901Z",
                "triggerType": "webhook",
                "flowVersion": 3,
            },
        }

    @pytest.mark.parametrize("character", ["x", "\x01", '"', "😀"], ids=ascii)
    def test_event_size_is_limited_for_any_error(self, character: str) -> None:
        event = event_of(FAILURE._replace(flow_name=character * 100, error_message=character * 1_000_000))
        assert len(event) < 20_000
        message = json.loads(event)["data"]["errorMessage"]
        assert message == character * 1_999 + "…"

    @pytest.mark.parametrize(
        ("status", "verb"), [(ExecutionStatus.ERROR, "failed"), (ExecutionStatus.TIMEOUT, "ran out of time")]
    )
    def test_mail_describes_the_failure(self, status: ExecutionStatus, verb: str) -> None:
        mail = mail_to("ops@example.com", status=status)
        assert (mail["From"], mail["To"]) == ("flows@example.com", "ops@example.com")
        assert (mail["Subject"], mail["Date"].datetime) == (f'Flow "Orders" {verb}', FAILURE.completed_at)
        assert mail.get_content() == (
            f'The flow "Orders" {verb} at 2026-01-02 03:05:35 UTC.\n'
            "\n"
            "What happened:\n"
            "fetch: api.example.com answered 500 Internal Server Error\n"
            "\n"
            f"Execution: {FAILURE.execution_id}\n"
            f"Flow: {FAILURE.flow_id}, version 3\n"
            "Started: 2026-01-02 03:04:05 UTC, trigger: webhook\n"
        )

    def test_repeated_mails_of_a_notification_have_the_same_message_id(self) -> None:
        """Mail programs show repeated mails as one."""
        first, again, other = (
            mail_of(FAILURE, notification_id, sender="flows@example.com", address="ops@example.com")
            for notification_id in (FAILURE.flow_id, FAILURE.flow_id, FAILURE.user_id)
        )
        assert first.as_bytes() == again.as_bytes()
        assert first["Message-ID"] != other["Message-ID"]

    def test_a_name_cannot_add_headers_to_a_mail(self) -> None:
        mail = mail_to("ops@example.com", flow_name="a\r\nBcc: everybody@example.com\x7f\u2028\nb")
        assert mail["Subject"] == 'Flow "a Bcc: everybody@example.com b" failed'
        assert mail["Bcc"] is None

    @pytest.mark.parametrize(
        "address",
        ["", "x", "<", '"', "a@[", "a@example.com\r\nBcc: b@example.com", "\n", "a@b.com, c@d.com"],
        ids=ascii,
    )
    def test_an_address_cannot_add_headers_to_a_mail(self, address: str) -> None:
        with pytest.raises(ValueError, match="an address must be like"):
            mail_to(address)


def mail_to(address: str, **changes: Any) -> EmailMessage:
    return mail_of(FAILURE._replace(**changes), new_id(), sender="flows@example.com", address=address)
