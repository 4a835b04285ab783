"""examples/forward-webhook.yaml"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from standardwebhooks import Webhook

from bloxserver.engine.engine import Engine
from tests.clients.loopback import LoopbackServer, answer
from tests.examples.installation import EXAMPLES, SIGNING_KEY, Flow, definition, in_sequence

INCIDENTS = "/hooks/incidents"


def alert(status: str = "firing", **labels: str) -> dict[str, Any]:
    """Return a webhook of Alertmanager (version 4 of its format) with one group of alerts."""
    sample: dict[str, Any] = json.loads((EXAMPLES / "alert.json").read_text(encoding="utf-8"))
    common = sample["commonLabels"] | labels
    return sample | {
        "groupKey": f'{{}}:{{alertname="{common["alertname"]}"}}',
        "status": status,
        "commonLabels": common,
        "alerts": [one | {"labels": one["labels"] | labels, "status": status} for one in sample["alerts"]],
    }


async def started(client: httpx.AsyncClient, outside: LoopbackServer) -> tuple[Flow, str]:
    outside.answers[INCIDENTS] = answer(status="202 Accepted")
    flow = await Flow.started(client, definition("forward-webhook", outside))
    return flow, await flow.webhook()


async def test_critical_alert_is_forwarded_once_and_signed(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow, webhook = await started(live_client, outside)
    first = await flow.post(webhook, alert())
    assert [listener for listener, *_ in first.steps] == ["alert", "once", "reshape", "tell"]
    again = await flow.post(webhook, alert())
    assert [listener for listener, *_ in again.steps] == ["alert", "once"]
    assert (first.status, again.status, again.output["added"]) == ("success", "success", False)

    [request] = outside.received
    Webhook(SIGNING_KEY).verify(request.body, dict(request.headers))
    told = json.loads(request.body)
    assert told["type"] == "incident.opened"
    assert told["data"] == {
        "title": "DiskFull",
        "summary": "A disk is almost full",
        "since": "2026-07-01T10:02:00Z",
        "machines": ["db-1:9100", "db-2:9100"],
    }


async def test_one_of_two_concurrent_alerts_is_forwarded(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow, webhook = await started(live_client, outside)
    runs = await asyncio.gather(*(flow.post(webhook, alert()) for _ in range(5)))
    assert [run.status for run in runs] == ["success"] * 5
    assert len(outside.received) == 1
    await flow.post(webhook, alert(alertname="CertificateExpires"))
    assert len(outside.received) == 2


async def test_resolved_alert_is_forwarded_again(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow, webhook = await started(live_client, outside)
    await flow.post(webhook, alert())
    over = await flow.post(webhook, alert("resolved"))
    assert (over.status, over.output) == ("success", {"deleted": True})
    await flow.post(webhook, alert())
    assert len(outside.received) == 2


async def test_uncritical_alert_is_not_forwarded(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow, webhook = await started(live_client, outside)
    without = alert()
    del without["commonLabels"]["severity"]
    for one in (alert(severity="warning"), without):
        run = await flow.post(webhook, one)
        assert (run.status, run.steps) == ("success", [("alert", "success", 1)])
    assert outside.received == []


async def test_failed_delivery_is_retried_with_the_same_message(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow, webhook = await started(live_client, outside)
    outside.answers[INCIDENTS] = in_sequence(answer(status="503 Busy"), answer(status="500 Oops"), answer())
    run = await flow.post(webhook, alert())
    assert (run.status, run.steps[-1]) == ("success", ("tell", "success", 3))
    assert len({request.headers["webhook-id"] for request in outside.received}) == 1
    assert len(outside.received) == 3


async def test_failed_execution_can_be_retried_from_the_failed_step(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow, webhook = await started(live_client, outside)
    outside.answers[INCIDENTS] = answer(status="503 Busy")
    failed = await flow.post(webhook, alert())
    assert failed.error == "tell (attempt 6 of 6): 127.0.0.1 answered 503 Service Unavailable"
    outside.answers[INCIDENTS] = answer()
    again = await flow.retry(failed)
    assert (again.status, again.execution["retryOf"]) == ("success", failed.execution["id"])
    assert [again.by_listener[name]["copied"] for name in ("alert", "once", "reshape", "tell")] == [True] * 3 + [False]
