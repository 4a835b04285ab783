"""examples/recipes: small flows that use expressions, joins and loops."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from bloxserver.engine.engine import Engine
from tests.clients.loopback import LoopbackServer, answer
from tests.engine.running_engine import ENDED, accept, eventually, steps_of
from tests.examples.conftest import Engines
from tests.examples.installation import EXAMPLES, Flow, Run, definition, says
from tests.llm_server import Asked, Reply, calls, language_model
from tests.llm_server import says as model_says
from tests.smtp_server import SmtpServer

RECIPES = sorted(path.stem for path in (EXAMPLES / "recipes").glob("*.yaml"))


async def started(client: httpx.AsyncClient, name: str, outside: LoopbackServer) -> Flow:
    return await Flow.started(client, definition(f"recipes/{name}", outside))


def bodies(outside: LoopbackServer) -> list[Any]:
    return [json.loads(request.body) for request in outside.received if request.body]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_short(name: str) -> None:
    assert len((EXAMPLES / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) <= 40


async def test_urgent_issue_is_posted_to_the_chat(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    outside.answers["/chat"] = says({"ok": True})
    await live_client.put("/api/v1/secrets/CHAT_URL", json={"value": outside.url("/chat")})
    flow = await started(live_client, "issue-to-chat", outside)
    await live_client.put(f"{flow.path}/vars", json={"vars": {"channel": "#bugs"}})
    webhook = await flow.webhook()
    issue = {"title": " It breaks ", "html_url": "https://git.example.com/1", "user": {"login": "ada"}}
    for labels in ([{"name": "urgent"}], [{"name": "later"}]):
        sent = {"action": "opened", "issue": issue | {"labels": labels}}
        answered = await live_client.post(f"{webhook}?wait=30", json=sent, headers={"X-GitHub-Event": "issues"})
        assert answered.status_code == 200
    [posted] = bodies(outside)
    assert posted == {"channel": "#bugs", "text": "It breaks by ada: https://git.example.com/1"}


async def test_only_new_items_of_a_feed_are_forwarded(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    items = [{"id": str(number), "title": f"T{number}", "url": f"https://x.example/{number}"} for number in (3, 2, 1)]
    outside.answers["/feed/feed.json"] = says({"items": items[1:]})
    outside.answers["/chat/messages"] = says({})
    flow = await started(live_client, "new-posts", outside)
    assert (await flow.run({})).status == "success"
    assert [body["text"] for body in bodies(outside)] == ["T1: https://x.example/1", "T2: https://x.example/2"]
    assert (await flow.run({})).status == "success"
    assert len(bodies(outside)) == 2, "nothing is new"
    outside.answers["/feed/feed.json"] = says({"items": items})
    await flow.run({})
    assert bodies(outside)[2:] == [{"text": "T3: https://x.example/3", "position": 1}]


@pytest.mark.parametrize(
    ("stock", "limit", "text"),
    [
        (says({"id": "R1"}), 100, "Order A-1 is confirmed: 25.00 EUR"),
        (says({"id": "R1"}), 10, "Order A-1 has to wait."),
        (answer(status="409 Conflict"), 100, "Order A-1 has to wait."),
    ],
)
async def test_order_is_decided_when_both_branches_have_answered(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, stock: bytes, limit: int, text: str
) -> None:
    outside.answers["/stock/reservations"] = stock
    outside.answers["/payments/credit"] = says({"limit": limit})
    flow = await started(live_client, "parallel-order", outside)
    order = {"id": "A-1", "customer": "Ada & Co", "items": [{"price": 12.5, "quantity": 2}]}
    run = await flow.run(order)
    assert (run.status, run.output) == ("success", {"text": text}), run.error
    assert [listener for listener, *_ in run.steps].count("decide") == 1
    [credit] = [request for request in outside.received if request.path.startswith("/payments")]
    assert credit.method == "GET"


async def test_csv_becomes_a_list_of_objects(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    flow = await started(live_client, "csv-to-json", outside)
    webhook = await flow.webhook()
    csv = "name, country\nAda, GB\nGrace, US\nAlan, GB\n"
    sent = await live_client.post(f"{webhook}?wait=30", content=csv, headers={"Content-Type": "text/csv"})
    path = f"{flow.path}/executions/{sent.json()['executionId']}"
    run = Run(await eventually(live_client, path, ENDED), await steps_of(live_client, path))
    assert run.status == "success", run.error
    people = [("Ada", "GB"), ("Grace", "US"), ("Alan", "GB")]
    ada, grace, alan = ({"name": name, "country": country} for name, country in people)
    assert run.output == {"rows": [ada, grace, alan], "by_country": {"GB": [ada, alan], "US": [grace]}}


async def test_agent_looks_up_the_order(
    live_client: httpx.AsyncClient, engine_with: Engines, outside: LoopbackServer
) -> None:
    def respond(asked: Asked) -> Reply:
        is_answered = any(message["role"] == "tool" for message in asked.json["messages"])
        return model_says("It is on its way.") if is_answered else calls(("lookup", {"number": "A-1041"}))

    outside.answers["/stock/orders/A-1041"] = says({"status": "sent"})
    async with language_model(respond) as server, engine_with(llm_base_url=server.url, llm_model="parrot-1"):
        flow = await started(live_client, "agent-with-tool", outside)
        run = await flow.run({"name": "Ada", "text": "Where is A-1041?"})
    assert (run.status, run.output) == ("success", {"text": "Dear Ada,\nIt is on its way."}), run.error


async def test_thousand_records_are_enriched(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer
) -> None:
    outside.answers["/source/records"] = says([{"id": number} for number in range(1_000)])
    for number in range(1_000):
        failing = number in (7, 500)
        outside.answers[f"/source/details/{number}"] = (
            answer(status="404 Not Found") if failing else says({"n": number})
        )
    flow = await started(live_client, "etl", outside)
    run = await flow.run({})
    assert (run.status, run.output) == ("success", {"loaded": 998, "failed": [7, 500]}), run.error


@pytest.mark.parametrize("button", ["approve", "reject"])
async def test_invoice_is_paid_after_an_approval(
    live_client: httpx.AsyncClient, working: Engine, outside: LoopbackServer, mail: SmtpServer, button: str
) -> None:
    outside.answers["/payments/payments"] = says({"id": "P1"})
    flow = await started(live_client, "approval", outside)
    execution = await accept(live_client, flow.path, {"supplier": "Ada", "amount": 250})
    async with asyncio.timeout(20):
        while not mail.received:  # noqa: ASYNC110  # the mail server is another task
            await asyncio.sleep(0.02)
    url = re.search(r"https?://\S+(/resume/\S+)", mail.received[0].message.get_content())
    assert url is not None
    page = await live_client.get(url[1])
    assert page.status_code == 200
    answered = await live_client.post(url[1], data={"button": button, "comment": "later"})
    assert answered.status_code == 200
    run = Run(await eventually(live_client, execution, ENDED), await steps_of(live_client, execution))
    assert run.status == "success", run.error
    if button == "approve":
        assert bodies(outside) == [{"supplier": "Ada", "amount": 250}]
    else:
        assert (run.output, outside.received) == ({"rejected": "later"}, [])
