"""Executions that wait for calls of their URLs, in a complete installation."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, ResumptionRecord
from bloxserver.resume_tokens import ResumeTokens
from bloxserver.settings import Settings, get_settings
from tests.api.contract import covers
from tests.clerk import override_settings
from tests.clients.loopback import answer, running_server
from tests.engine.running_engine import ENDED, accept, eventually, run, running_engine, started_flow, steps_of

KEY, OLD_KEY = "k" * 32, "o" * 32
APPROVAL = """\
organism: {name: approval}
listeners:
  - name: request
    description: d
    handler: transform
    config: {output: {url: "{{ resume.ask.url }}", amount: "{{ payload.amount }}"}}
    peers: [ask]
  - name: ask
    description: d
    handler: wait.webhook
    config:
      question: "Pay {{ payload.amount }} EUR?"
      fields:
        - {name: comment, label: "A comment"}
        - {name: limit, type: number}
        - {name: urgent, type: boolean}
        - {name: account, type: select, options: [a, b], required: true}
      buttons: [{value: approve, label: Approve}, {value: reject}]
    peers:
      - {to: paid, when: payload.button == "approve"}
      - {to: refused, when: payload.button == "reject"}
      - {to: late, on: error}
  - {name: paid, description: d, handler: transform, config: {output: {paid: "{{ payload }}"}}}
  - {name: refused, description: d, handler: transform, config: {output: refused}}
  - {name: late, description: d, handler: transform, config: {output: "{{ payload.error.code }}"}}
"""
SIMPLE = """\
organism: {name: simple}
listeners:
  - {name: first, description: d, handler: echo, peers: [ask]}
  - {name: ask, description: d, handler: wait.webhook}
"""
BUSY = """\
organism: {{name: busy}}
listeners:
  - {{name: first, description: d, handler: echo, peers: [ask, slow]}}
  - {{name: ask, description: d, handler: wait.webhook, peers: [after]}}
  - {{name: after, description: d, handler: http.request, config: {{url: "{url}/after"}}}}
  - {{name: slow, description: d, handler: http.request, config: {{url: "{url}/slow"}}}}
"""
HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture
def keyed(live_settings: Settings) -> Iterator[Settings]:
    """The settings of the engine. The API has the same key."""
    with override_settings(API_KEY_ENCRYPTION_KEY=KEY):
        yield live_settings.model_copy(update={"api_key_encryption_key": get_settings().api_key_encryption_key})


@pytest.fixture
async def working(keyed: Settings, live_database: Database) -> AsyncIterator[Engine]:
    async with running_engine(keyed, live_database) as engine:
        yield engine


def url_of(execution: str, listener: str = "ask", key: str = KEY) -> str:
    """The path of the URL of a listener in the execution with this path."""
    return f"/resume/{ResumeTokens([key]).sign(UUID(execution.rpartition('/')[2]), listener)}"


async def suspended(database: Database, execution: str) -> None:
    """Wait until the execution with this path is suspended."""
    row = ExecutionRecord
    wanted = row.id == UUID(execution.rpartition("/")[2]), row.resume_at.is_not(None), row.lease.is_(None)
    async with asyncio.timeout(40):
        while True:
            async with database.transaction(read_only=True) as session:
                if await session.scalar(sa.select(row.id).where(*wanted)) is not None:
                    return
            await asyncio.sleep(0.02)


async def waiting(client: httpx.AsyncClient, database: Database, organism: str, payload: Any = None) -> str:
    """The path of an execution that is suspended."""
    execution = await accept(client, await started_flow(client, organism), payload)
    await suspended(database, execution)
    return execution


def output_of(execution: dict[str, Any]) -> Any:
    assert execution["status"] == "success", execution
    return json.loads(execution["outputPayload"])


@covers("resume.page", "resume.accept")
async def test_form_approves(working: Engine, live_client: httpx.AsyncClient, live_database: Database) -> None:
    execution = await waiting(live_client, live_database, APPROVAL, {"amount": 12})
    first, step = await steps_of(live_client, execution)
    assert json.loads(first["outputPayload"])["url"] == f"{get_settings().public_url}{url_of(execution)}"
    assert (step["status"], step["answeredBy"]) == ("waiting", None)
    assert json.loads(step["outputPayload"]) == {"question": "Pay 12 EUR?"}
    for _ in range(2):  # a page changes nothing
        page = await live_client.get(url_of(execution))
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "Pay 12 EUR?" in page.text
        assert "<script" not in page.text
        assert '<button name="button" value="approve">Approve</button>' in page.text
    form = {"comment": "fine", "limit": "1.5", "account": "b", "button": "approve", "answered_by": " Ada "}
    answered = await live_client.post(url_of(execution), data=form, headers=HTML | {"User-Agent": "browser"})
    assert (answered.status_code, "Your answer was received" in answered.text) == (200, True)
    ended = await eventually(live_client, execution, ENDED)
    members = {"comment": "fine", "limit": 1.5, "urgent": False, "account": "b", "button": "approve"}
    assert output_of(ended) == {"paid": members}
    _, step, _ = await steps_of(live_client, execution)
    by = step["answeredBy"]
    assert (by["address"], by["userAgent"], by["name"]) == ("127.0.0.1", "browser", "Ada")
    assert json.loads(step["outputPayload"]) == members


@covers("resume.once", "resume.invalid")
async def test_json_rejects(working: Engine, live_client: httpx.AsyncClient, live_database: Database) -> None:
    execution = await waiting(live_client, live_database, APPROVAL, {"amount": 12})
    invalid = await live_client.post(url_of(execution), json={"button": "maybe", "limit": True, "other": 1})
    assert (invalid.status_code, invalid.json()["code"]) == (422, "validation_error")
    assert invalid.json()["details"].keys() == {"button", "limit", "account", "other"}
    accepted = await live_client.post(url_of(execution), json={"button": "reject", "account": "a"})
    assert (accepted.status_code, accepted.json()) == (200, {"status": "accepted"})
    again = await live_client.post(url_of(execution), json={"button": "approve", "account": "a"})
    assert (again.status_code, again.json()["code"]) == (409, "already_answered")
    assert output_of(await eventually(live_client, execution, ENDED)) == "refused"


async def test_timeout_is_an_error_that_a_peer_handles(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    timed = APPROVAL.replace("handler: wait.webhook", "handler: wait.webhook\n    timeout_seconds: 0.05")
    path = await started_flow(live_client, timed)
    ended = await run(live_client, path, {"amount": 1})
    assert output_of(ended) == "wait_timeout"
    late = await live_client.post(url_of(f"{path}/executions/{ended['id']}"), json={"button": "reject"})
    assert (late.status_code, late.json()["code"]) == (404, "wait_not_found")


async def test_call_before_the_wait_is_kept(
    keyed: Settings, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    async with running_engine(keyed, live_database):
        path = await started_flow(live_client, SIMPLE)
    execution = await accept(live_client, path)
    page = await live_client.get(url_of(execution))
    assert "The question has not been asked yet" in page.text
    accepted = await live_client.post(url_of(execution), content="yes", headers={"Content-Type": "text/plain"})
    assert accepted.status_code == 200
    async with running_engine(keyed, live_database):
        assert output_of(await eventually(live_client, execution, ENDED)) == {"text": "yes"}


async def test_wait_survives_a_restart(
    keyed: Settings, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    async with running_engine(keyed, live_database):
        execution = await waiting(live_client, live_database, SIMPLE)
    assert (await live_client.post(url_of(execution), json=[1])).status_code == 200
    async with running_engine(keyed, live_database):
        assert output_of(await eventually(live_client, execution, ENDED)) == [1]


async def test_one_of_many_concurrent_calls_is_accepted(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    execution = await waiting(live_client, live_database, SIMPLE)
    calls = [live_client.post(url_of(execution), json=number) for number in range(5)]
    responses = await asyncio.gather(*calls)
    assert sorted(response.status_code for response in responses) == [200, 409, 409, 409, 409]
    [accepted] = [number for number, response in enumerate(responses) if response.status_code == 200]
    assert output_of(await eventually(live_client, execution, ENDED)) == accepted


async def test_running_execution_continues_with_the_answer(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    """The other branch ends only after the branch that waited for a call."""
    called, answered = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        called.set()
        await answered.wait()
        writer.write(answer(b"slow"))

    async def after(writer: asyncio.StreamWriter) -> None:
        answered.set()
        writer.write(answer(b"after"))

    async with running_server() as server, asyncio.timeout(40):
        server.answers |= {"/slow": slow, "/after": after}
        path = await started_flow(live_client, BUSY.format(url=server.url("")))
        execution = await accept(live_client, path)
        await called.wait()
        assert (await live_client.post(url_of(execution), json=1)).status_code == 200
        assert (await eventually(live_client, execution, ENDED))["status"] == "success"


async def test_listener_waits_once(working: Engine, live_client: httpx.AsyncClient, live_database: Database) -> None:
    twice = """\
organism: {name: twice}
listeners:
  - {name: first, description: d, handler: echo, peers: [a, b]}
  - {name: a, description: d, handler: echo, peers: [ask]}
  - {name: b, description: d, handler: echo, peers: [ask]}
  - {name: ask, description: d, handler: wait.webhook, peers: [{to: failed, on: error}]}
  - {name: failed, description: d, handler: transform, config: {output: "{{ payload.error.code }}"}}
"""
    execution = await waiting(live_client, live_database, twice)
    assert (await live_client.post(url_of(execution), json=1)).status_code == 200
    assert output_of(await eventually(live_client, execution, ENDED)) == {"ask": 1, "failed": "wait_repeated"}


@covers("resume.unknown")
async def test_cancelled_execution_has_no_wait(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    execution = await waiting(live_client, live_database, SIMPLE)
    assert (await live_client.post(f"{execution}/cancel")).status_code == 200
    ended = await live_client.post(url_of(execution), json=1)
    forged = await live_client.post(url_of(execution)[:-2] + "xx", json=1)
    for response in (ended, forged):
        assert response.status_code == 404
    hidden = {"requestId": None}
    assert ended.json() | hidden == forged.json() | hidden
    async with live_database.transaction(read_only=True) as session:
        assert (await session.scalars(sa.select(ResumptionRecord))).all() == []


async def test_tokens_of_all_keys_are_valid(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    execution = await waiting(live_client, live_database, SIMPLE)
    old = url_of(execution, key=OLD_KEY)
    assert (await live_client.get(old)).status_code == 404
    with override_settings(API_KEY_ENCRYPTION_KEY=f"{KEY},{OLD_KEY}"):
        assert (await live_client.get(old)).status_code == 200


async def test_hostile_text_is_escaped(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    hostile = """\
organism: {name: hostile}
listeners:
  - {name: first, description: d, handler: echo, peers: [ask]}
  - name: ask
    description: d
    handler: wait.webhook
    config:
      question: "{{ payload }}"
      fields: [{name: a, label: '"><script>1</script>'}, {name: b, type: select, options: ['"><i>x']}]
      buttons: [{value: '"><b>y', label: '<u>z'}]
"""
    execution = await waiting(live_client, live_database, hostile, "</p><script>alert(1)</script>")
    page = await live_client.get(url_of(execution))
    form = {"a": '"><s>q', "b": "none", "answered_by": "<em>"}
    rejected = await live_client.post(url_of(execution), data=form, headers=HTML)
    assert (page.status_code, rejected.status_code) == (200, 422)
    for response in (page, rejected):
        for tag in ("<script", "<i>", "<b>", "<u>", "<s>", "<em>"):
            assert tag not in response.text
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not re.search("script-src|unsafe", policy)
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-robots-tag"] == "noindex, nofollow"
    assert "Use one of" in rejected.text
    assert "&lt;s&gt;q" in rejected.text


@covers("resume.too-large")
async def test_large_body_is_refused(working: Engine, live_client: httpx.AsyncClient, live_database: Database) -> None:
    execution = await waiting(live_client, live_database, SIMPLE)
    refused = await live_client.post(url_of(execution), content=b"x" * (64 * 1024 + 1))
    assert (refused.status_code, refused.json()["code"]) == (413, "payload_too_large")
    assert (await live_client.post(url_of(execution), content=b"x" * 64 * 1024)).status_code == 200
    output = output_of(await eventually(live_client, execution, ENDED))
    assert output == {"text": "x" * 64 * 1024}


async def test_interrupted_wait_keeps_its_time(
    keyed: Settings, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    """A worker that is killed leaves a claimed execution, which another one recovers."""
    async with running_engine(keyed, live_database):
        execution = await waiting(live_client, live_database, SIMPLE)
    id = UUID(execution.rpartition("/")[2])
    time_of_step = sa.select(ExecutionStepRecord.completed_at).where(
        ExecutionStepRecord.execution_id == id, ExecutionStepRecord.listener == "ask"
    )
    async with live_database.transaction() as session:
        before = await session.scalar(time_of_step)
        row = sa.update(ExecutionRecord).where(ExecutionRecord.id == id)
        await session.execute(row.values(lease=id, worker_id="killed", resume_at=now()))
    assert (await live_client.post(url_of(execution), json=2)).status_code == 200
    async with running_engine(keyed, live_database):
        assert output_of(await eventually(live_client, execution, ENDED)) == 2
    assert before is not None
    [_, step] = await steps_of(live_client, execution)
    assert step["attempt"] == 1


async def test_url_leads_to_the_retry_of_the_failed_steps(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    """The step that sent the URL is not repeated."""
    path = await started_flow(live_client, SIMPLE.replace("wait.webhook", "wait.webhook, timeout_seconds: 0.05"))
    failed = await run(live_client, path)
    assert failed["errorMessage"] == "ask: no call within 0.05 seconds"
    original = f"{path}/executions/{failed['id']}"
    long = SIMPLE.replace("wait.webhook", "wait.webhook, timeout_seconds: 2592000")
    assert (await live_client.patch(path, json={"organismYaml": long})).status_code == 200
    retried = await live_client.post(f"{original}/retry?from=failed&version=latest")
    assert retried.status_code == 201
    retry = f"{path}/executions/{retried.json()['id']}"
    await suspended(live_database, retry)
    assert (await live_client.post(url_of(original), json=1)).status_code == 200
    assert (await live_client.post(url_of(retry), json=2)).status_code == 409
    assert output_of(await eventually(live_client, retry, ENDED)) == 1
    [first, step] = await steps_of(live_client, retry)
    assert (first["copied"], step["copied"]) == (True, False)


async def test_answer_is_kept_for_a_retry(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    failing = SIMPLE.replace("wait.webhook", "wait.webhook, peers: [after]")
    failing += "  - {name: after, description: d, handler: transform, config: {expression: payload.missing}}\n"
    execution = await waiting(live_client, live_database, failing)
    assert (await live_client.post(url_of(execution), json={"a": 1})).status_code == 200
    assert (await eventually(live_client, execution, ENDED))["status"] == "error"
    retried = await live_client.post(f"{execution}/retry?from=failed")
    retry = f"{execution.rpartition('/')[0]}/{retried.json()['id']}"
    assert (await eventually(live_client, retry, ENDED))["status"] == "error"
    step = next(step for step in await steps_of(live_client, retry) if step["listener"] == "ask")
    assert (step["status"], step["copied"], step["answeredBy"]["address"]) == ("success", True, "127.0.0.1")


async def test_flow_that_stops_has_no_waits(
    working: Engine, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    execution = await waiting(live_client, live_database, SIMPLE)
    path = execution.rpartition("/executions/")[0]
    assert (await live_client.post(f"{path}/stop")).status_code == 200
    assert (await eventually(live_client, execution, ENDED))["status"] == "cancelled"
    assert (await live_client.post(url_of(execution), json=1)).status_code == 404


async def test_either_worker_continues(
    keyed: Settings, live_client: httpx.AsyncClient, live_database: Database
) -> None:
    """SQLite has one worker."""
    async with AsyncExitStack() as engines:
        for _ in range(1 if live_database.is_sqlite else 2):
            await engines.enter_async_context(running_engine(keyed, live_database))
        path = await started_flow(live_client, SIMPLE)
        executions = [await accept(live_client, path) for _ in range(6)]
        calls = [live_client.post(url_of(execution), json=execution) for execution in executions]
        assert {response.status_code for response in await asyncio.gather(*calls)} == {200}
        for execution in executions:
            assert output_of(await eventually(live_client, execution, ENDED)) == execution


async def test_definition_needs_a_key(live_client: httpx.AsyncClient) -> None:
    validated = await live_client.post("/api/v1/organisms/validate", json={"organismYaml": SIMPLE})
    [problem] = validated.json()["problems"]
    assert (problem["code"], problem["severity"], problem["line"]) == ("missing_key", "error", 4)
    assert problem["hint"] == "set API_KEY_ENCRYPTION_KEY on the server"
