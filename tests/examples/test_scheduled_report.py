"""examples/scheduled-report.yaml"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import TriggerRecord
from tests.clients.loopback import LoopbackServer, answer
from tests.examples.installation import SECRETS, Flow, definition, in_sequence, says
from tests.smtp_server import SmtpServer

SALES = "/shop/sales"
JULY = "2026-07-01T05:00:00Z"


def figures(since: str, until: str, **values: Any) -> bytes:
    best = [{"name": "Desk lamp", "sold": 9}, {"name": "Notebook", "sold": 15}]
    return says({"since": since, "until": until, "orders": 12, "revenue": 1834.5, "best": best} | values)


async def test_schedule_sends_the_report(
    live_client: httpx.AsyncClient,
    live_database: Database,
    working: Engine,
    outside: LoopbackServer,
    mail: SmtpServer,
) -> None:
    outside.answers[SALES] = figures("2026-01-01T00:00:00Z", JULY)
    flow = await Flow.started(live_client, definition("scheduled-report", outside))
    config = {"cron": "0 7 * * 1-5", "timezone": "Europe/Berlin"}
    body = {"type": "schedule", "name": "Weekday mornings", "config": config}
    assert (await live_client.post(f"{flow.path}/triggers", json=body)).status_code == 201
    async with live_database.transaction() as session:
        await session.execute(sa.update(TriggerRecord).values(next_fire_at=now() - timedelta(seconds=1)))

    run = await flow.first_run()
    assert (run.status, run.execution["triggerType"]) == ("success", "schedule")
    assert [listener for listener, *_ in run.steps] == [
        *("last_report", "sales", "draft", "write", "mail", "sent", "remember")
    ]
    [request] = outside.received
    assert (request.method, request.path) == ("GET", f"{SALES}?since=2026-01-01T00:00:00Z")
    assert request.headers["authorization"] == f"Bearer {SECRETS['SHOP_TOKEN']}"
    [sent] = mail.received
    assert (sent.sender, sent.recipients) == ("flows@example.com", ["sales@example.com"])
    assert sent.message["Subject"] == "Sales: 12 orders, 1,834.50 EUR"
    assert sent.message.get_content().splitlines() == [
        f"From 2026-01-01T00:00:00Z to {JULY}:",
        "",
        "12 orders, 1,834.50 EUR",
        "",
        "    9 Desk lamp",
        "   15 Notebook",
    ]
    [trigger] = (await live_client.get(f"{flow.path}/triggers")).json()
    assert trigger["lastFiredAt"] < trigger["nextFireAt"]


async def test_report_begins_where_the_last_report_ended(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer
) -> None:
    flow = await Flow.started(live_client, definition("scheduled-report", outside))
    for until in (JULY, "2026-07-02T05:00:00Z"):
        outside.answers[SALES] = figures("then", until, best=[])
        assert (await flow.run()).status == "success"
    asked = [request.path.partition("since=")[2] for request in outside.received]
    assert asked == ["2026-01-01T00:00:00Z", JULY]
    assert len(mail.received) == 2


async def test_unavailable_shop_loses_no_sales(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer
) -> None:
    flow = await Flow.started(live_client, definition("scheduled-report", outside))
    outside.answers[SALES] = answer(status="503 Busy")
    failed = await flow.run()
    assert failed.error == "sales (attempt 4 of 4): 127.0.0.1 answered 503 Service Unavailable"
    outside.answers[SALES] = in_sequence(answer(status="502 Bad Gateway"), figures("then", JULY))
    assert (await flow.run()).status == "success"
    assert {request.path for request in outside.received} == {f"{SALES}?since=2026-01-01T00:00:00Z"}
    assert len(mail.received) == 1


async def test_failed_email_can_be_retried(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer
) -> None:
    flow = await Flow.started(live_client, definition("scheduled-report", outside))
    outside.answers[SALES] = figures("then", JULY)
    mail.refusals["DATA"] = "451 Try again later"
    failed = await flow.run()
    assert failed.error == "mail (attempt 6 of 6): 127.0.0.1 answered 451"
    mail.refusals.clear()
    assert (await flow.retry(failed)).status == "success"
    assert (len(outside.received), len(mail.received)) == (1, 1)
    outside.answers[SALES] = figures(JULY, "2026-07-02T05:00:00Z")
    assert (await flow.run()).status == "success"
    assert outside.received[-1].path == f"{SALES}?since={JULY}"


@pytest.mark.parametrize("refusal", ["451 Try again later", "550 No such mailbox"])
async def test_a_report_that_was_not_sent_is_part_of_the_next_one(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer, refusal: str
) -> None:
    flow = await Flow.started(live_client, definition("scheduled-report", outside))
    mail.refusals["DATA"] = refusal
    for until in (JULY, "2026-07-02T05:00:00Z"):
        outside.answers[SALES] = figures("then", until)
        assert (await flow.run()).status == "error"
    mail.refusals.clear()
    for until in ("2026-07-03T05:00:00Z", "2026-07-04T05:00:00Z"):
        outside.answers[SALES] = figures("then", until)
        assert (await flow.run()).status == "success"
    asked = [request.path.partition("since=")[2] for request in outside.received]
    assert asked == [*["2026-01-01T00:00:00Z"] * 3, "2026-07-03T05:00:00Z"]
    assert len(mail.received) == 2
