"""examples/resilient-chain.yaml"""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamWriter
from typing import Any

import httpx
from standardwebhooks import Webhook

from bloxserver.engine.engine import Engine
from tests.clients.loopback import LoopbackServer, answer
from tests.examples.installation import SECRETS, SIGNING_KEY, Flow, definition, in_sequence, says

RESERVATIONS, CHARGES, REFUNDS = "/stock/reservations", "/payments/charges", "/payments/refunds"
RELEASED = f"{RESERVATIONS}/R-17"
ORDER = {"order": "A-1042", "sku": "lamp", "quantity": 2, "amount": 79.8}
CHARGE = {"order": "A-1042", "amount": 79.8}
BUSY = answer(status="503 Busy")


async def started(client: httpx.AsyncClient, outside: LoopbackServer, charge_seconds: float = 10) -> Flow:
    outside.answers |= {
        RESERVATIONS: says({**ORDER, "id": "R-17"}, "201 Created"),
        CHARGES: says(CHARGE, "201 Created"),
        REFUNDS: says({"order": "A-1042", "reservation": "R-17"}),
        RELEASED: says({"id": "R-17", "released": True}),
    }
    text = definition("resilient-chain", outside)
    return await Flow.started(client, text.replace("timeout_seconds: 10", f"timeout_seconds: {charge_seconds}"))


def asked(outside: LoopbackServer) -> list[tuple[str, str]]:
    return [(request.method, request.path) for request in outside.received]


async def test_transient_errors_are_retried(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, outside)
    outside.answers[RESERVATIONS] = in_sequence(BUSY, BUSY, BUSY, says({**ORDER, "id": "R-17"}))
    outside.answers[CHARGES] = in_sequence(BUSY, answer(status="429 Slow down"), says(CHARGE))
    run = await flow.run(ORDER)
    assert (run.status, run.output) == ("success", {"text": "Order A-1042 is paid: 79.8 EUR."})
    assert run.steps == [("reserve", "success", 4), ("charge", "success", 3), ("done", "success", 1)]
    charges = [request for request in outside.received if request.path == CHARGES]
    assert [json.loads(request.body) for request in charges] == [CHARGE] * 3
    assert {request.headers["authorization"] for request in charges} == {f"Bearer {SECRETS['PAYMENTS_TOKEN']}"}
    assert len({request.headers["idempotency-key"] for request in charges}) == 1


async def test_declined_charge_is_compensated(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, outside)
    outside.answers[CHARGES] = answer(status="402 Payment Required")
    outside.answers[REFUNDS] = in_sequence(BUSY, BUSY, says({"order": "A-1042", "reservation": "R-17"}))
    run = await flow.run(ORDER)
    assert (run.status, run.output["body"]) == ("success", {"id": "R-17", "released": True})
    assert run.steps == [
        ("reserve", "success", 1),
        ("charge", "error", 1),
        ("refund", "success", 3),
        ("release", "success", 1),
    ]
    assert asked(outside) == [
        ("POST", RESERVATIONS),
        ("POST", CHARGES),
        *[("POST", REFUNDS)] * 3,
        ("DELETE", RELEASED),
    ]
    assert json.loads(outside.received[2].body) == {"order": "A-1042", "reservation": "R-17"}
    error = json.loads(run.by_listener["refund"]["inputPayload"])["error"]
    assert (error["listener"], error["code"], error["attempt"]) == ("charge", "http_error_status", 1)


async def test_slow_charge_is_compensated(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    async def never(writer: StreamWriter) -> None:
        await writer.wait_closed()

    flow = await started(live_client, outside, charge_seconds=0.2)
    outside.answers[CHARGES] = never
    run = await flow.run(ORDER)
    assert run.status == "success"
    assert run.steps[1] == ("charge", "error", 5)
    assert run.by_listener["charge"]["errorCode"] == "listener_timeout"
    assert asked(outside)[-2:] == [("POST", REFUNDS), ("DELETE", RELEASED)]


async def test_failed_compensation_is_reported(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    told = asyncio.Event()

    async def take(writer: StreamWriter) -> None:
        writer.write(answer())
        told.set()

    flow = await started(live_client, outside)
    outside.answers |= {CHARGES: answer(status="402 Payment Required"), REFUNDS: BUSY, "/hooks/failures": take}
    run = await flow.run(ORDER)
    assert run.status == "error"
    assert run.error == "refund (attempt 9 of 9): 127.0.0.1 answered 503 Service Unavailable"
    async with asyncio.timeout(20):
        await told.wait()
    notice = outside.received[-1]
    Webhook(SIGNING_KEY).verify(notice.body, dict(notice.headers))
    body: dict[str, Any] = json.loads(notice.body)
    assert (body["type"], body["data"]["executionId"]) == ("execution.failed", run.execution["id"])
    assert body["data"]["errorMessage"] == run.error


async def test_failed_reservation_needs_no_compensation(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, outside)
    outside.answers |= {RESERVATIONS: answer(status="409 Conflict"), "/hooks/failures": answer()}
    run = await flow.run(ORDER)
    assert (run.status, run.error) == ("error", "reserve (attempt 1 of 4): 127.0.0.1 answered 409 Conflict")
    assert run.steps == [("reserve", "error", 1)]
