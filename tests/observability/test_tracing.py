"""Traces are always propagated, exported if an endpoint is configured, and contain no payloads or tokens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.testing import capture_logs

from bloxserver import __version__
from bloxserver.clock import now
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord
from bloxserver.observability.tracing import (
    child_span,
    continue_trace,
    current_traceparent,
    read_traceparent,
    start_tracing,
    stop_tracing,
)
from bloxserver.settings import Settings
from tests.api.contract import covers
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.engine.running_engine import ENDED, eventually, running_engine, started_flow
from tests.factories import create_flow, create_trigger, create_user

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GIVEN = f"00-{TRACE}-00f067aa0ba902b7-01"
CANARY = "canary-2b7e151628aed2a6"
CHAIN = """
organism: {{name: chain}}
listeners:
  - {{name: ask, description: d, handler: http.request, config: {{method: POST, url: "{url}/ask"}}, peers: [tell]}}
  - {{name: tell, description: d, handler: webhook.send, config: {{url: "{url}/tell"}}, peers: [hand-on]}}
  - {{name: hand-on, description: d, handler: flow.call, config: {{flow: callee}}}}
"""
CALLEE = """
organism: {{name: callee}}
listeners:
  - {{name: ask-too, description: d, handler: http.request, config: {{method: POST, url: "{url}/callee"}}}}
"""
FAILING = """
organism: {name: failing}
listeners:
  - {name: parse, description: d, handler: json.parse, retries: 1, backoff_seconds: 0.01}
"""


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([GIVEN], GIVEN),
        ([GIVEN[:-2] + "00"], GIVEN[:-2] + "00"),
        (["cc" + GIVEN[2:]], GIVEN),
        (["cc" + GIVEN[2:] + "-what-the-future-is-like"], GIVEN),
        ([], None),
        ([GIVEN, GIVEN], None),
        (["ff" + GIVEN[2:]], None),
        ([GIVEN + "-more"], None),
        ([GIVEN + "0"], None),
        (["cc" + GIVEN[2:] + "0"], None),
        ([GIVEN + "\n"], None),
        ([GIVEN.upper()], None),
        ([GIVEN[:-1]], None),
        ([f"00-{'0' * 32}-00f067aa0ba902b7-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE}-00f067aa0ba902bg-01"], None),
        ([""], None),
        (["\u0660" * 55], None),
    ],
)
def test_invalid_traceparent_is_rejected(values: list[str], read: str | None) -> None:
    assert read_traceparent(values) == read


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        for path in ("/ask", "/tell", "/callee", "/v1/traces"):
            server.answers[path] = answer(b"{}")
        yield server


@pytest.fixture
async def working(live_settings: Settings, live_database: Database) -> AsyncIterator[Engine]:
    async with running_engine(live_settings, live_database) as engine:
        yield engine


async def triggered(
    client: httpx.AsyncClient, organism: str, *traceparents: str, status: str = "success"
) -> dict[str, Any]:
    """Run an execution by a webhook until its end."""
    path = await started_flow(client, organism)
    trigger = (await client.post(f"{path}/triggers", json={"type": "webhook", "name": "T", "config": {}})).json()
    headers = [("traceparent", one) for one in traceparents]
    accepted = await client.post(
        f"/webhooks/{trigger['webhookToken']}", json={CANARY: CANARY}, headers=[*headers, ("tracestate", CANARY)]
    )
    execution = await eventually(client, f"{path}/executions/{accepted.json()['executionId']}", ENDED)
    assert execution["status"] == status, execution
    return execution | {"token": trigger["webhookToken"]}


async def stored(database: Database) -> list[str | None]:
    async with database.transaction(read_only=True) as session:
        return list(await session.scalars(sa.select(ExecutionRecord.trace_parent).order_by(ExecutionRecord.id)))


class TestWithoutTracing:
    @covers("tracing.kept")
    async def test_traceparent_is_propagated_unchanged(
        self, live_client: httpx.AsyncClient, live_database: Database, working: Engine, server: LoopbackServer
    ) -> None:
        await started_flow(live_client, CALLEE.format(url=server.url("")), name="callee")
        await triggered(live_client, CHAIN.format(url=server.url("")), GIVEN)
        sent = {request.path: request.headers.get("traceparent") for request in server.received}
        assert sent == {"/ask": GIVEN, "/tell": GIVEN, "/callee": GIVEN}
        assert not [request for request in server.received if "tracestate" in request.headers]
        assert await stored(live_database) == [GIVEN, GIVEN]

    @covers("tracing.kept")
    @pytest.mark.parametrize("given", [[], [CANARY], [GIVEN, GIVEN]])
    async def test_invalid_traceparent_is_ignored(
        self,
        live_client: httpx.AsyncClient,
        live_database: Database,
        working: Engine,
        server: LoopbackServer,
        given: list[str],
    ) -> None:
        await started_flow(live_client, CALLEE.format(url=server.url("")), name="callee")
        await triggered(live_client, CHAIN.format(url=server.url("")), *given)
        assert [request for request in server.received if "traceparent" in request.headers] == []
        assert await stored(live_database) == [None, None]

    async def test_traceparent_of_a_flow_is_not_replaced(
        self, live_client: httpx.AsyncClient, working: Engine, server: LoopbackServer
    ) -> None:
        own = GIVEN.replace("4bf9", "aaaa")
        organism = f"""
organism: {{name: own}}
listeners:
  - name: ask
    description: d
    handler: http.request
    config: {{method: POST, url: "{server.url("/ask")}", headers: {{TraceParent: {own}}}}}
"""
        await triggered(live_client, organism, GIVEN)
        assert [request.headers["traceparent"] for request in server.received] == [own]

    async def test_no_span_is_started_without_an_endpoint(self) -> None:
        start_tracing(Settings())
        with continue_trace("x", None, {}) as span, child_span("y", {}):
            assert current_traceparent() is None
            span.set_attributes({"a": 1}, name="z")
            span.fail("b")
        await stop_tracing()

    async def test_server_starts_without_the_tracing_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
        with capture_logs() as lines:
            start_tracing(Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:1"))
        assert [line["event"] for line in lines] == ["tracing disabled: bloxserver[tracing] is not installed"]
        with continue_trace("x", None, {}):
            assert current_traceparent() is None


class Spans(dict[str, Any]):
    """The spans that a collector received, by name."""

    def attributes(self, name: str) -> dict[str, Any]:
        values = {one.key: one.value for one in self[name].attributes}
        return {
            key: value.int_value if value.HasField("int_value") else value.string_value for key, value in values.items()
        }


def received_spans(server: LoopbackServer) -> tuple[Spans, dict[str, str]]:
    """Return the spans and their resource attributes."""
    spans, resource = Spans(), dict[str, str]()
    for request in server.received:
        if request.path == "/v1/traces":
            assert CANARY.encode() not in request.body
            for group in ExportTraceServiceRequest.FromString(request.body).resource_spans:
                resource |= {one.key: one.value.string_value for one in group.resource.attributes}
                spans |= {span.name: span for scope in group.scope_spans for span in scope.spans}
    return spans, resource


class TestWithTracing:
    @covers("tracing.spans")
    async def test_trace_spans_the_webhook_and_all_steps(
        self,
        live_client: httpx.AsyncClient,
        live_database: Database,
        working: Engine,
        server: LoopbackServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=tests")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme")
        await started_flow(live_client, CALLEE.format(url=server.url("")), name="callee")
        start_tracing(Settings(otel_exporter_otlp_endpoint=server.url("/")))
        try:
            execution = await triggered(live_client, CHAIN.format(url=server.url("")), GIVEN)
        finally:
            await stop_tracing()
        spans, resource = received_spans(server)
        assert (resource["service.name"], resource["service.version"]) == ("bloxserver", __version__)
        assert resource["deployment.environment"] == "tests"
        assert {request.headers.get("x-tenant") for request in server.received if "traces" in request.path} == {"acme"}
        request = spans["POST /webhooks/{webhook_token}"]
        assert request.parent_span_id.hex() == GIVEN.split("-")[2]
        traced = {name for name, span in spans.items() if span.trace_id.hex() == TRACE}
        assert traced == {request.name, "execution", "step http.request", "step webhook.send", "step flow.call"}
        assert spans.attributes(request.name) == {
            "http.request.method": "POST",
            "http.route": "/webhooks/{webhook_token}",
            "http.response.status_code": 200,
        }
        assert spans.attributes("step webhook.send") == {
            "bloxserver.step.listener": "tell",
            "bloxserver.step.handler": "webhook.send",
            "bloxserver.step.attempt": 1,
            "bloxserver.step.status": "success",
        }
        kept = await stored(live_database)
        assert kept[0] == f"00-{TRACE}-{request.span_id.hex()}-01"
        assert kept[1] == f"00-{TRACE}-{spans['step flow.call'].span_id.hex()}-01"
        sent = {one.path: one.headers["traceparent"] for one in server.received if "traces" not in one.path}
        assert sent["/tell"] == f"00-{TRACE}-{spans['step webhook.send'].span_id.hex()}-01"
        assert {value.split("-")[1] for value in sent.values()} == {TRACE}
        assert execution["token"] not in str(spans)

    @covers("tracing.spans")
    async def test_step_spans_are_children_of_the_execution_span(
        self, live_client: httpx.AsyncClient, live_database: Database, working: Engine, server: LoopbackServer
    ) -> None:
        start_tracing(Settings(otel_exporter_otlp_traces_endpoint=server.url("/v1/traces")))
        try:
            await triggered(live_client, FAILING, status="error")
            await live_client.get("/health/live")
        finally:
            await stop_tracing()
        spans, _ = received_spans(server)
        request, execution, step = (
            spans[name] for name in ("POST /webhooks/{webhook_token}", "execution", "step json.parse")
        )
        assert request.parent_span_id == b""
        assert execution.parent_span_id == request.span_id
        assert step.parent_span_id == execution.span_id
        told = spans.attributes("step json.parse")
        assert (told["bloxserver.step.status"], told["error.type"]) == ("error", "missing_value")
        assert (step.status.code, step.status.message, list(step.events)) == (2, "", [])
        assert spans.attributes("execution")["bloxserver.execution.status"] == "error"
        assert not [name for name in spans if "health" in name]

    async def test_schedule_starts_a_trace(self, live_database: Database, server: LoopbackServer) -> None:
        async with live_database.transaction() as session:
            flow = await create_flow(session, await create_user(session))
            config = {"cron": "* * * * *"}
            await create_trigger(session, flow, type="schedule", config=config, next_fire_at=now())
        start_tracing(Settings(otel_exporter_otlp_endpoint=server.url("")))
        try:
            await fire_due_schedules(live_database)
        finally:
            await stop_tracing()
        span = received_spans(server)[0]["schedule"]
        (kept,) = await stored(live_database)
        assert kept is not None
        assert kept.startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-0")

    async def test_unavailable_collector_does_not_affect_requests(
        self, live_client: httpx.AsyncClient, working: Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        start_tracing(Settings(otel_exporter_otlp_endpoint="http://user:s3cret@127.0.0.1:1"))
        try:
            await triggered(live_client, FAILING, status="error")
        finally:
            async with asyncio.timeout(3):
                await stop_tracing(flush_seconds=0.1)
        assert "s3cret" not in caplog.text
