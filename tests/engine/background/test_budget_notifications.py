"""Notifications of budgets of language models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from bloxserver.blocks.base import DAILY_BUDGET_USED
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import FlowRecord
from bloxserver.organism.load import parse_organism
from bloxserver.services.notifications import enqueue_budget_notification
from bloxserver.settings import Settings
from tests.clients.loopback import running_server
from tests.engine.notification_installation import Installation, organism
from tests.factories import create_flow, create_user
from tests.smtp_server import running_smtp_server


@pytest.fixture
async def installation(live_settings: Settings, live_database: Database) -> AsyncIterator[Installation]:
    async with running_server() as http, running_smtp_server() as smtp:
        installation = Installation(live_settings, live_database, http, smtp)
        async with live_database.transaction() as session:
            installation.user = await create_user(session)
        yield installation


MESSAGE = "$0.4 of $0.5 are used today (execution.daily_max_cost_usd)"


async def warn(installation: Installation, *subjects: str) -> FlowRecord:
    definition = organism(url=installation.url, email="ops@example.com")
    recipients = (await parse_organism(definition, installation.user.id)).on_failure
    assert recipients is not None
    async with installation.database.transaction() as session:
        flow = await create_flow(session, installation.user, name="Orders", organism_yaml=definition)
        for subject in subjects:
            await enqueue_budget_notification(session, flow.id, subject, MESSAGE, recipients)
    return flow


async def test_both_recipients_are_notified_once_for_a_subject(installation: Installation) -> None:
    flow = await warn(installation, "day 1", "day 1")
    assert await installation.notifier().deliver_due() == 2
    [sent] = installation.http.received
    body = json.loads(sent.body)
    assert (body["type"], body["data"]) == (
        "budget.warning",
        {"flowId": str(flow.id), "flowName": "Orders", "message": MESSAGE},
    )
    [mail] = installation.smtp.received
    assert b"almost used" in mail.content
    assert all(notice.delivered_at for notice in await installation.notices())


async def test_budget_that_stops_calls_has_its_own_type_and_subject(installation: Installation) -> None:
    await warn(installation, f"{DAILY_BUDGET_USED} 2026-11-29")
    assert await installation.notifier().deliver_due() == 2
    [sent] = installation.http.received
    assert json.loads(sent.body)["type"] == "budget.exceeded"
    [mail] = installation.smtp.received
    assert b'Subject: The daily budget of flow "Orders" is used' in mail.content
    assert MESSAGE.encode() in mail.content


async def test_other_subject_is_another_notification(installation: Installation) -> None:
    await warn(installation, "day 1", "day 2")
    assert len(await installation.notices()) == 4


async def test_notifications_are_kept_for_two_days(installation: Installation) -> None:
    flow = await warn(installation, "day 1")
    await installation.change(due_at=None, created_at=now() - timedelta(days=3))
    recipients = (await parse_organism(flow.organism_yaml, installation.user.id)).on_failure
    assert recipients is not None
    async with installation.database.transaction() as session:
        await enqueue_budget_notification(session, flow.id, "day 3", MESSAGE, recipients)
    assert {notice.subject for notice in await installation.notices()} == {"day 3"}
