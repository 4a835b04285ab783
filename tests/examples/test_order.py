"""examples/order.yaml"""

from __future__ import annotations

import json
from typing import Any

import httpx

from bloxserver.engine.engine import Engine
from tests.clients.loopback import LoopbackServer, answer
from tests.engine.running_engine import started_flow
from tests.examples.conftest import Engines
from tests.examples.installation import Flow, definition, in_sequence, says
from tests.smtp_server import SmtpServer

RESERVATIONS = "/stock/reservations"
EBOOK = {"sku": "ebook", "price": 12.55, "quantity": 1, "download": "https://files.example.com/ebook.epub"}
LAMP = {"sku": "lamp", "price": 39.9, "quantity": 2}


def order(*items: dict[str, Any]) -> dict[str, Any]:
    return {"order": "A-1042", "customer": {"name": "Ada", "email": "ada@example.com"}, "items": list(items)}


async def started(client: httpx.AsyncClient, outside: LoopbackServer) -> Flow:
    outside.answers[RESERVATIONS] = says({"id": "R-17", "order": "A-1042"}, "201 Created")
    return await Flow.started(client, definition("order", outside))


async def test_order_of_downloads_is_confirmed(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer
) -> None:
    flow = await started(live_client, outside)
    run = await flow.run(order(EBOOK))
    assert (run.status, run.output) == ("success", {"text": "Thank you, Ada! 12.55 EUR; your downloads are ready."})
    assert [listener for listener, *_ in run.steps] == ["price", "decide", "confirm"]
    assert run.by_listener["decide"]["routedTo"] == ["confirm"]
    assert (outside.received, mail.received) == ([], [])


async def test_order_of_goods_reserves_stock(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer
) -> None:
    flow = await started(live_client, outside)
    run = await flow.run(order(EBOOK, LAMP))
    assert (run.status, run.output) == ("success", {"text": "Order A-1042 is reserved as R-17."})
    [request] = outside.received
    assert (request.method, json.loads(request.body)) == ("POST", {**order(EBOOK, LAMP), "total": 92.35})


async def test_order_of_unavailable_goods_is_delayed(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, outside)
    outside.answers[RESERVATIONS] = says({"error": "out of stock"}, "409 Conflict")
    run = await flow.run(order(LAMP))
    assert (run.status, run.output) == ("success", {"text": "Sorry, Ada, order A-1042 has to wait."})
    assert run.steps[2:] == [("reserve", "error", 1), ("backorder", "success", 1)]
    assert run.by_listener["reserve"]["errorMessage"] == "127.0.0.1 answered 409 Conflict"


async def test_unavailable_stock_service_is_called_three_times(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, outside)
    outside.answers[RESERVATIONS] = in_sequence(*[answer(status="503 Busy")] * 3)
    run = await flow.run(order(LAMP))
    assert run.steps[2:] == [("reserve", "error", 3), ("backorder", "success", 1)]
    assert len({request.headers["idempotency-key"] for request in outside.received}) == 1


async def test_large_order_is_sent_for_approval(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer
) -> None:
    flow = await started(live_client, outside)
    approved = await flow.webhook(target="reserve")
    run = await flow.run(order({**LAMP, "quantity": 30}))
    assert [listener for listener, *_ in run.steps] == ["price", "decide", "ask"]
    assert (run.status, run.output["accepted"], outside.received) == ("success", ["approvals@example.com"], [])

    [sent] = mail.received
    assert sent.message["Subject"] == "Order A-1042: 1197.0 EUR"
    posted = json.loads(sent.message.get_content().splitlines()[2])
    run = await flow.post(approved, posted)
    assert run.output == {"text": "Order A-1042 is reserved as R-17."}
    assert json.loads(outside.received[0].body) == {**order({**LAMP, "quantity": 30}), "total": 1197.0}


async def test_flow_does_not_start_without_a_mail_server(
    live_client: httpx.AsyncClient, engine_with: Engines, outside: LoopbackServer
) -> None:
    async with engine_with(smtp_host=None):
        path = await started_flow(live_client, definition("order", outside), settled="error")
    refused = (await live_client.get(path)).json()["errorMessage"]
    assert "this server sends no mail: SMTP_HOST must be set" in refused


async def test_order_without_items_fails_with_the_missing_value(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, outside)
    run = await flow.run({"order": "A-1042", "customer": {"name": "Ada"}})
    assert run.status == "error"
    assert run.error is not None
    assert run.error.startswith("price: ")
    assert run.error.endswith("no such field: items")
