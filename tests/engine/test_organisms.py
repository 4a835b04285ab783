"""Organisms in a complete installation: conditions, retries, calls, control and secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from bloxserver.encryption import SecretCipher
from bloxserver.engine.engine import Engine
from bloxserver.model_catalogue import BASE_URLS
from bloxserver.models.database import Base, Database
from bloxserver.services.llm_keys import store_llm_key
from bloxserver.settings import Settings
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.engine.running_engine import (
    ENDED,
    accept,
    end_delay,
    eventually,
    run,
    running_engine,
    started_flow,
    steps_of,
)
from tests.listening import listening
from tests.llm_server import calls, language_model, says

SEALING_KEY = "a key of these tests: 0123456789abcdef"
CANARY = "canary-71c5/&?"


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        yield server


@pytest.fixture
async def working(live_settings: Settings, live_database: Database) -> AsyncIterator[Engine]:
    async with running_engine(live_settings, live_database) as engine:
        yield engine


async def test_large_input_is_handled_outside_of_the_event_loop(
    live_client: httpx.AsyncClient, live_database: Database, working: Engine
) -> None:
    path = await started_flow(
        live_client,
        """\
organism: {name: large}
listeners:
  - {name: first, description: d, handler: echo, peers: [{to: second, when: payload.last == 1}, other]}
  - {name: second, description: d, handler: transform, config: {expression: payload.values.size()}}
  - {name: other, description: d, handler: delay, config: {seconds: 3600}}
""",
    )
    payload = {"values": [1] * 9_000, "last": 1}
    accepted = await accept(live_client, path, payload)
    await end_delay(live_database, accepted)
    execution = await eventually(live_client, accepted, ENDED)
    assert execution["status"] == "success", execution
    assert json.loads(execution["outputPayload"]) == {"second": 9_000, "other": payload}
    text = "no JSON " * 9_000
    ended = await run(live_client, path, text)
    assert (ended["status"], ended["errorMessage"][:20]) == ("error", "first: the condition")


async def test_order_is_routed_and_its_error_is_handled(
    live_client: httpx.AsyncClient, working: Engine, server: LoopbackServer
) -> None:
    server.answers["/down"] = answer(status="503 Service Unavailable")
    path = await started_flow(
        live_client,
        f"""\
organism: {{name: orders}}
listeners:
  - name: sort
    description: d
    handler: echo
    peers: [{{to: ship, when: payload.total > 100}}, {{to: thank, when: payload.total <= 100}}]
  - {{name: thank, description: d, handler: text.template, config: {{template: "Thanks, {{{{ payload.name }}}}!"}}}}
  - name: ship
    description: d
    handler: http.request
    config: {{method: POST, url: "{server.url("/down")}"}}
    retries: 2
    backoff_seconds: 0.01
    peers: [{{to: apologise, on: error, when: error.code == 'http_error_status'}}]
  - name: apologise
    description: d
    handler: text.template
    config: {{template: "Sorry, {{{{ payload.input.name }}}}: {{{{ payload.error.attempt }}}} attempts"}}
""",
    )
    small = await run(live_client, path, {"total": 5, "name": "Ada"})
    assert (small["status"], json.loads(small["outputPayload"])) == ("success", {"text": "Thanks, Ada!"})
    execution = await accept(live_client, path, {"total": 500, "name": "Bob"})
    large = await eventually(live_client, execution, ENDED)
    assert (large["status"], json.loads(large["outputPayload"])) == ("success", {"text": "Sorry, Bob: 3 attempts"})
    keys = [request.headers["idempotency-key"] for request in server.received]
    assert (len(keys), len(set(keys))) == (3, 1)
    steps = await steps_of(live_client, execution)
    assert [(step["listener"], step["status"], step["attempt"]) for step in steps] == [
        ("sort", "success", 1),
        ("ship", "error", 3),
        ("apologise", "success", 1),
    ]
    assert steps[1]["errorCode"] == "http_error_status"


CALLED = """\
organism: {name: called}
listeners:
  - {name: wait, description: d, handler: delay, config: {seconds: 0.1}, peers: [tell]}
  - {name: tell, description: d, handler: transform, config: {output: {got: "{{ payload }}"}}}
"""
CALLER = """\
organism: {name: caller}
listeners:
  - {name: call, description: d, handler: flow.call, config: {flow: called}, peers: [tell]}
  - {name: tell, description: d, handler: transform, config: {output: {answer: "{{ payload }}"}}}
"""


async def test_flow_calls_another_with_a_single_worker_slot(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    async with running_engine(live_settings, live_database, concurrency_pro=1):
        await started_flow(live_client, CALLED, name="called")
        path = await started_flow(live_client, CALLER)
        ended = await run(live_client, path, {"x": 1})
        assert (ended["status"], json.loads(ended["outputPayload"])) == ("success", {"answer": {"got": {"x": 1}}})
        usage = (await live_client.get("/api/v1/usage")).json()
        assert usage["runsUsed"] == 2


async def test_recursive_flow_call_ends(live_client: httpx.AsyncClient, working: Engine) -> None:
    circle = CALLER.replace("flow: called", "flow: circle")
    path = await started_flow(live_client, circle, name="circle")
    ended = await run(live_client, path)
    assert ended["status"] == "error"
    assert "more than 8 deep" in ended["errorMessage"]


async def test_an_agent_uses_its_tools_and_tokens_are_counted(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    text = """\
organism: {name: agent}
listeners:
  - {name: helper, description: d, prompt: Be brief., peers: [look_up]}
  - {name: look_up, description: Looks it up, handler: transform, config: {output: "42"}}
"""
    script = [calls(("look_up", {"input": "?"}), input_tokens=100, output_tokens=20), says("It is 42.")]
    async with (
        language_model(script) as model,
        running_engine(live_settings, live_database, llm_base_url=model.url, llm_model="scripted"),
    ):
        path = await started_flow(live_client, text)
        execution = await accept(live_client, path, "What is it?")
        ended = await eventually(live_client, execution, ENDED)
        assert (ended["status"], json.loads(ended["outputPayload"])) == ("success", {"text": "It is 42."})
        assert (ended["inputTokens"], ended["outputTokens"]) == (110, 25)
        steps = {step["listener"]: step for step in await steps_of(live_client, execution)}
        assert (steps["helper"]["inputTokens"], steps["helper"]["outputTokens"]) == (110, 25)
        assert steps["look_up"]["parentId"] == steps["helper"]["id"]
        assert (await live_client.get("/api/v1/usage")).json()["tokensUsed"] == 135


async def test_own_key_is_enough_for_an_agent_and_is_never_stored(
    live_client: httpx.AsyncClient,
    live_settings: Settings,
    live_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The installation has no provider, and the provider quotes the key."""
    caplog.set_level(logging.DEBUG)
    key = "sk-proj-canary-of-a-user-4711"
    text = "organism: {name: a}\nlisteners:\n  - {name: helper, description: d, prompt: p, model: gpt-1}\n"
    user_id = UUID((await live_client.get("/api/v1/me")).json()["id"])
    async with live_database.transaction() as session:
        await store_llm_key(session, SecretCipher([SEALING_KEY]), user_id, "openai", key)
    async with (
        language_model([says(f"It is {key}.")]) as model,
        running_engine(live_settings, live_database, api_key_encryption_key=SecretStr(SEALING_KEY)),
    ):
        monkeypatch.setitem(BASE_URLS, "openai", model.url)
        ended = await run(live_client, await started_flow(live_client, text))
        assert model.requests[0].headers["authorization"] == f"Bearer {key}"
    assert json.loads(ended["outputPayload"]) == {"text": "It is [your own key for openai]."}
    async with live_database.sessions() as session:
        for table in Base.metadata.sorted_tables:
            assert key not in repr((await session.execute(sa.select(table))).all()), table.name
    assert key not in caplog.text


async def test_an_agent_without_a_language_model_is_refused_at_the_start(
    live_client: httpx.AsyncClient, working: Engine
) -> None:
    text = "organism: {name: a}\nlisteners:\n  - {name: helper, description: d, prompt: p}\n"
    path = await started_flow(live_client, text, "error")
    message = (await live_client.get(path)).json()["errorMessage"]
    assert message.startswith("line 3, column")
    assert "LLM_BASE_URL" in message


class Silent:
    """A server that never answers."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        """Set when the client disconnects."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.set()
        await reader.read()
        self.left.set()


@pytest.fixture
async def silent() -> AsyncIterator[Silent]:
    server = Silent()
    async with listening(server.serve) as port:
        server.url = f"http://127.0.0.1:{port}/"
        yield server


class TestControl:
    SLOW = """\
organism: {{name: slow}}
listeners:
  - {{name: ask, description: d, handler: http.request, config: {{url: "{url}"}}, peers: [tell]}}
  - {{name: tell, description: d, handler: echo}}
"""

    async def test_cancel_stops_running_work(
        self, live_client: httpx.AsyncClient, working: Engine, silent: Silent
    ) -> None:
        path = await started_flow(live_client, self.SLOW.format(url=silent.url))
        execution = await accept(live_client, path)
        await asyncio.wait_for(silent.asked.wait(), 20)
        cancelled = (await live_client.post(f"{execution}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        await asyncio.wait_for(silent.left.wait(), 20)

    async def test_stop_cancels_running_executions_after_the_grace_period(
        self,
        live_client: httpx.AsyncClient,
        live_settings: Settings,
        live_database: Database,
        silent: Silent,
    ) -> None:
        async with running_engine(live_settings, live_database, stop_grace_seconds=0.3):
            path = await started_flow(live_client, self.SLOW.format(url=silent.url))
            execution = await accept(live_client, path)
            await asyncio.wait_for(silent.asked.wait(), 20)
            assert (await live_client.post(f"{path}/stop")).json()["status"] == "stopping"
            refused = await live_client.post(f"{path}/executions/run")
            assert refused.json()["detail"] == "Flow must be running to execute (current: stopping)"
            await eventually(live_client, path, {"stopped"})
            ended = (await live_client.get(execution)).json()
            assert (ended["status"], ended["errorMessage"]) == ("cancelled", "The flow was stopped")

    async def test_stop_waits_for_executions_that_end_in_time(
        self, live_client: httpx.AsyncClient, working: Engine
    ) -> None:
        path = await started_flow(live_client, CALLED)
        execution = await accept(live_client, path, 1)
        await live_client.post(f"{path}/stop")
        assert (await eventually(live_client, execution, ENDED))["status"] == "success"
        await eventually(live_client, path, {"stopped"})

    async def test_cancelled_caller_cancels_called_executions(
        self, live_client: httpx.AsyncClient, working: Engine, silent: Silent
    ) -> None:
        called = await started_flow(live_client, self.SLOW.format(url=silent.url), name="called")
        path = await started_flow(live_client, CALLER)
        execution = await accept(live_client, path)
        await asyncio.wait_for(silent.asked.wait(), 20)
        await live_client.post(f"{execution}/cancel")
        (child,) = (await live_client.get(f"{called}/executions")).json()["items"]
        assert child["status"] == "cancelled"
        await asyncio.wait_for(silent.left.wait(), 20)


async def test_secret_reaches_its_server_and_is_never_stored(
    live_client: httpx.AsyncClient,
    live_settings: Settings,
    live_database: Database,
    server: LoopbackServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server echoes the request in its headers, body and status line, as text and encoded."""
    caplog.set_level(logging.INFO)

    async def echo(writer: asyncio.StreamWriter) -> None:
        request = server.received[-1]
        told = {"headers": dict(request.headers), "path": request.path, "body": request.body.decode()}
        told["encoded"] = base64.b64encode(CANARY.encode()).decode()
        writer.write(answer(json.dumps(told).encode(), headers={"Content-Type": "application/json", "X-Back": CANARY}))

    async def fail(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(CANARY.encode(), status=f"500 {CANARY}"))

    server.answers |= {"/echo": echo, "/fail": fail}
    text = """\
organism: {{name: secretive}}
listeners:
  - name: ask
    description: d
    handler: http.request
    config:
      method: POST
      url: "{url}?key={{{{ secrets.KEY }}}}"
      headers: {{Authorization: "Bearer {{{{ secrets.KEY }}}}"}}
      body: {{token: "{{{{ secrets.KEY }}}}"}}
    peers: [tell, {{to: tell, on: error}}]
  - {{name: tell, description: d, handler: echo}}
"""
    monkeypatch.setenv("API_KEY_ENCRYPTION_KEY", SEALING_KEY)
    from bloxserver.settings import get_settings

    get_settings.cache_clear()
    async with running_engine(live_settings, live_database, api_key_encryption_key=SecretStr(SEALING_KEY)):
        refused = await started_flow(live_client, text.format(url=server.url("/echo")), "error")
        assert "KEY" in (await live_client.get(refused)).json()["errorMessage"]
        stored = await live_client.put("/api/v1/secrets/KEY", json={"value": CANARY})
        assert stored.status_code == 200, stored.text
        for route in ("/echo", "/fail"):
            path = await started_flow(live_client, text.format(url=server.url(route)))
            execution = await accept(live_client, path)
            ended = await eventually(live_client, execution, ENDED)
            assert ended["status"] == "success", ended
            shown = json.dumps([ended, await steps_of(live_client, execution)])
            assert "[secret KEY]" in shown or route == "/fail"
    get_settings.cache_clear()
    assert server.received[0].headers["authorization"] == f"Bearer {CANARY}"
    assert json.loads(server.received[0].body) == {"token": CANARY}
    forms = [CANARY, base64.b64encode(CANARY.encode()).decode(), "canary-71c5%2F", "canary-71c5\\/"]
    async with live_database.transaction(read_only=True) as session:
        for table in Base.metadata.sorted_tables:
            kept = repr((await session.execute(sa.select(table))).all())
            assert not [form for form in forms if form in kept], table.name
    assert not [form for form in forms if form in caplog.text]
