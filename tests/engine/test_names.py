"""Names in expressions and placeholders, in a complete installation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.engine.running_engine import ENDED, accept, eventually, run, running_engine, started_flow, steps_of

pytestmark = pytest.mark.usefixtures("working")


@pytest.fixture
async def working(live_settings: Settings, live_database: Database) -> AsyncIterator[Engine]:
    async with running_engine(live_settings, live_database) as engine:
        yield engine


def output_of(execution: dict[str, Any]) -> Any:
    assert execution["status"] == "success", execution
    return json.loads(execution["outputPayload"])


async def test_answers_of_earlier_listeners_are_available(live_client: httpx.AsyncClient) -> None:
    path = await started_flow(
        live_client,
        """\
organism: {name: steps}
listeners:
  - {name: a-b, description: d, handler: transform, config: {expression: '{"total": payload.x * 2}'}, peers: [second]}
  - name: second
    description: d
    handler: echo
    peers: [{to: third, when: 'steps["a-b"].total == 6'}]
  - name: third
    description: d
    handler: transform
    config:
      output:
        first: "{{ steps.a-b.total }}"
        sum: "{{ steps['a-b'].total + steps.second.total }}"
        maybe: "{{ has(steps.never) ? 1 : 0 }}"
        text: "{{ steps.second }} of {{ input.x }}"
    peers: [fourth]
  - name: fourth
    description: d
    handler: python
    config: {code: "[steps['third']['sum'], input['x'], payload['sum']]"}
  - {name: never, description: d, handler: echo}
""",
    )
    ended = await run(live_client, path, {"x": 3})
    assert output_of(ended) == [12, 3, 12]
    [third] = [
        step for step in await steps_of(live_client, f"{path}/executions/{ended['id']}") if step["listener"] == "third"
    ]
    assert json.loads(third["outputPayload"]) == {"first": 6, "sum": 12, "maybe": 0, "text": '{"total":6} of 3'}


async def test_large_answers_are_read_in_another_process(live_client: httpx.AsyncClient) -> None:
    path = await started_flow(
        live_client,
        """\
organism: {name: large}
listeners:
  - {name: big, description: d, handler: echo, peers: [small]}
  - name: small
    description: d
    handler: transform
    config: {output: 1}
    peers: [{to: last, when: 'steps.big.size() > 1'}]
  - {name: last, description: d, handler: transform, config: {expression: steps.big.sum() + steps.small}}
""",
    )
    assert output_of(await run(live_client, path, [1] * 9_000)) == 9_001


async def test_facts_of_the_trigger_and_the_execution_are_available(live_client: httpx.AsyncClient) -> None:
    path = await started_flow(
        live_client,
        """\
organism: {name: facts}
listeners:
  - name: all
    description: d
    handler: transform
    config: {output: {trigger: "{{ trigger }}", run: "{{ execution }}"}}
""",
    )
    manual = await run(live_client, path, {})
    facts = output_of(manual)
    assert facts["trigger"] == dict.fromkeys(
        ("name", "method", "headers", "query", "contentType", "scheduledFor"), None
    ) | {"type": "manual", "firedAt": facts["trigger"]["firedAt"]}
    assert facts["run"]["id"] == manual["id"]
    assert facts["run"]["url"].endswith(f"{path}/executions/{manual['id']}")
    webhook = (
        await live_client.post(f"{path}/triggers", json={"name": "Hook", "type": "webhook", "config": {}})
    ).json()
    sent = await live_client.post(
        f"/webhooks/{webhook['webhookToken']}?a=1&token=t",
        json={},
        headers={"X-Kind": "push", "Authorization": "Basic x"},
    )
    ended = await eventually(live_client, f"{path}/executions/{sent.json()['executionId']}", ENDED)
    trigger = output_of(ended)["trigger"]
    assert (trigger["type"], trigger["name"], trigger["method"]) == ("webhook", "Hook", "POST")
    assert (trigger["query"], trigger["contentType"]) == ({"a": "1"}, "application/json")
    assert trigger["headers"]["x-kind"] == "push"
    assert "authorization" not in trigger["headers"]
    retried = (await live_client.post(f"{path}/executions/{ended['id']}/retry")).json()
    again = output_of(await eventually(live_client, f"{path}/executions/{retried['id']}", ENDED))
    assert again["run"]["retryOf"] == ended["id"]
    assert again["trigger"]["headers"] == trigger["headers"]


async def test_variables_are_those_at_the_acceptance(live_client: httpx.AsyncClient) -> None:
    path = await started_flow(
        live_client,
        """\
organism: {name: vars}
listeners:
  - {name: wait, description: d, handler: delay, config: {seconds: 0.3}, peers: [use]}
  - name: use
    description: d
    handler: text.template
    config: {template: "{{ vars.channel }} {{ vars.limits[1] + 1 }}"}
""",
    )
    assert (await live_client.get(f"{path}/vars")).json() == {"vars": {}}
    set_vars = {"vars": {"channel": "#one", "limits": [1, 2]}}
    assert (await live_client.put(f"{path}/vars", json=set_vars)).json() == set_vars
    accepted = await accept(live_client, path, {})
    await live_client.put(f"{path}/vars", json={"vars": {"channel": "#two", "limits": [3, 4]}})
    ended = await eventually(live_client, accepted, ENDED)
    assert output_of(ended) == {"text": "#one 3"}
    assert output_of(await run(live_client, path, {})) == {"text": "#two 5"}
    missing = await run(await _without_vars(live_client, path), path, {})
    assert (missing["status"], missing["errorMessage"]) == ("error", "use: the message has no vars.channel")


async def _without_vars(client: httpx.AsyncClient, path: str) -> httpx.AsyncClient:
    assert (await client.put(f"{path}/vars", json={"vars": {}})).status_code == 200
    return client


@pytest.mark.parametrize("body", [{}, {"vars": []}, {"vars": {"a b": 1}}, {"vars": {"1": 1}}, {"vars": {"a": "\0"}}])
async def test_invalid_variables_are_rejected(live_client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    path = await started_flow(
        live_client, "organism: {name: v}\nlisteners: [{name: a, description: d, handler: echo}]\n"
    )
    assert (await live_client.put(f"{path}/vars", json=body)).status_code == 422
