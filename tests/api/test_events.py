"""The events of an execution as Server-Sent Events."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from structlog.testing import capture_logs
from structlog.typing import EventDict

from bloxserver.api import streaming
from bloxserver.api.dependencies import SessionSource
from bloxserver.api.main import app
from bloxserver.api.shutdown import Shutdown
from bloxserver.api.streaming import EventStream
from bloxserver.api.watching import ExecutionWatcher, Watch
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    ExecutionStepRecord,
    FlowRecord,
    UserRecord,
)
from bloxserver.services.transitions import end_execution
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import API, assert_problem, covers, path_of
from tests.api.sse import Event, parse_events, validated
from tests.server import head, run_server
from tests.single_connection import single_connection
from tests.statements import count_statements
from tests.steps import create_step


@pytest.fixture
async def ended(session: AsyncSession, flow: FlowRecord) -> ExecutionRecord:
    """An execution that has ended, with three steps."""
    execution = await factories.create_execution(
        session, flow, status=ExecutionStatus.SUCCESS, input_payload="in", output_payload="out"
    )
    for sequence, listener in enumerate("abc", 1):
        await create_step(session, execution, listener, sequence=sequence, output_payload="1")
    return execution


def events_path(execution: ExecutionRecord) -> str:
    return f"{API}/flows/{execution.flow_id}/executions/{execution.id}/events"


@covers("events.stream", "events.end")
async def test_ended_execution_is_streamed_completely(client: httpx.AsyncClient, ended: ExecutionRecord) -> None:
    response = await client.get(events_path(ended))
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-cache, no-transform"
    assert response.text.startswith("retry: 1000\n\n")
    events = parse_events(response.text)
    assert [(event.kind, event.id) for event in events] == [
        ("execution", None),
        ("step", "1"),
        ("step", "2"),
        ("step", "3"),
        ("execution", "end"),
    ]
    assert events[0].data == events[-1].data
    shown = (await client.get(events_path(ended).removesuffix("/events"))).json()
    assert events[0].data == {name: shown[name] for name in shown.keys() - {"inputPayload", "outputPayload"}}
    steps = (await client.get(events_path(ended).replace("/events", "/steps"))).json()["items"]
    outlines = [
        {name: step[name] for name in step.keys() - {"inputPayload", "outputPayload", "payloadsOmitted"}}
        for step in steps
    ]
    assert [event.data for event in events[1:4]] == outlines


async def test_events_match_their_documented_schemas(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    execution = await factories.create_execution(
        session, flow, status=ExecutionStatus.ERROR, completed_at=now(), error_message="why", retry_of=uuid4()
    )
    for sequence, status in enumerate(StepStatus, 1):
        await create_step(session, execution, status.value, sequence=sequence, status=status, routed_to=["a"])
    await create_step(session, execution, "same", sequence=1, started_at=now())
    events = parse_events((await client.get(events_path(execution))).text)
    models = [validated(event) for event in events]
    assert [model.event for model in models] == ["execution", *["step"] * (len(StepStatus) + 1), "execution"]
    schemas = app.openapi()["components"]["schemas"]
    payloads = {"execution": schemas["ExecutionOutline"], "step": schemas["StepOutline"]}
    for event in events:
        assert event.data.keys() == payloads[event.kind]["properties"].keys()


@covers("events.resume")
async def test_stream_continues_after_the_last_event_id(client: httpx.AsyncClient, ended: ExecutionRecord) -> None:
    async def ids(header: str | None, query: str | None = None) -> list[str | None]:
        response = await client.get(
            events_path(ended),
            params={} if query is None else {"last_event_id": query},
            headers={} if header is None else {b"Last-Event-ID": header.encode()},
        )
        assert response.status_code == 200
        return [event.id for event in parse_events(response.text) if event.kind == "step"]

    assert await ids("2") == ["3"]
    assert await ids(None, "2") == ["3"]
    assert await ids("3", "1") == [], "the header takes precedence over the query"
    for unknown in ("", "x", "-1", "1.5", "²"):
        assert await ids(unknown) == ["1", "2", "3"]
    assert await ids("0") == ["1", "2", "3"]
    assert await ids("9" * 400) == []
    for params, headers in (({"last_event_id": "end"}, {}), ({"last_event_id": "1"}, {"Last-Event-ID": "end"})):
        response = await client.get(events_path(ended), params=params, headers=headers)
        assert (response.status_code, response.content) == (204, b"")


async def test_steps_with_equal_sequence_numbers_are_all_sent(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    execution = await factories.create_execution(session, flow, status=ExecutionStatus.ERROR)
    for listener in "abc":
        await create_step(session, execution, listener)
    events = parse_events((await client.get(events_path(execution))).text)
    assert {event.data["listener"] for event in events[1:-1]} == {"a", "b", "c"}
    assert [event.id for event in events[1:-1]] == [None, None, "0"], "the id is on the last of the events"


@covers("events.resume")
@pytest.mark.parametrize("page", [1, 2, 3, 4, 500])
async def test_every_step_is_sent_once_for_any_batch_size(
    client: httpx.AsyncClient,
    flow: FlowRecord,
    session: AsyncSession,
    page: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "STEP_BATCH_SIZE", page)
    execution = await factories.create_execution(session, flow, status=ExecutionStatus.ERROR)
    sequences = [1, 2, 2, 2, 3, 4, 4, 5]
    for number, sequence in enumerate(sequences):
        await create_step(session, execution, f"l{number}", sequence=sequence)
    events = parse_events((await client.get(events_path(execution))).text)[1:-1]
    assert sorted(str(event.data["listener"]) for event in events) == [f"l{number}" for number in range(8)]
    seen: set[object] = set()
    for event in events:
        seen.add(event.data["listener"])
        if event.id is not None:
            headers = {"Last-Event-ID": event.id}
            rest = parse_events((await client.get(events_path(execution), headers=headers)).text)[1:-1]
            assert {one.data["listener"] for one in rest} == {f"l{number}" for number in range(8)} - seen


async def test_unknown_execution_is_not_found(
    client: httpx.AsyncClient, flow: FlowRecord, ended: ExecutionRecord
) -> None:
    for path in (f"{path_of(flow)}/executions/{uuid4()}", f"{API}/flows/{uuid4()}/executions/{ended.id}"):
        for params in ({}, {"last_event_id": "end"}):
            refused = await client.get(f"{path}/events", params=params)
            assert_problem(refused, 404, "execution_not_found", "Execution not found")


class Reader:
    """Reads the events of an open stream."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> str:
        """The next block; empty at the end of the stream. Raises `TimeoutError` after 30 seconds."""
        block = ""
        async with asyncio.timeout(30):
            async for line in self._lines:
                if not line:
                    return block
                block += f"{line}\n"
        return block

    async def event(self) -> Event:
        while True:
            block = await self.next()
            assert block, "the stream ended"
            if events := parse_events(block):
                return events[0]


@asynccontextmanager
async def reading(port: int, path: str) -> AsyncIterator[Reader]:
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        client.stream("GET", path) as response,
    ):
        assert response.status_code == 200
        yield Reader(response.aiter_lines())


@pytest.fixture
async def running(live_client: httpx.AsyncClient, live_database: Database) -> ExecutionRecord:
    """A running execution without a worker, in a database that accepts several connections."""
    await live_client.get(f"{API}/me")
    async with live_database.sessions() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        return await factories.create_execution(session, await factories.create_flow(session, user))


async def write_step(database: Database, execution_id: UUID, listener: str, sequence: int, status: StepStatus) -> None:
    """Insert or update the step of a listener."""
    async with database.transaction() as session:
        changed = await session.execute(
            sa.update(ExecutionStepRecord)
            .where(ExecutionStepRecord.listener == listener)
            .values(sequence=sequence, status=status)
            .returning(ExecutionStepRecord.id)
        )
        if changed.first() is None:
            session.add(
                ExecutionStepRecord(
                    execution_id=execution_id, key=f":{listener}", listener=listener, sequence=sequence, status=status
                )
            )


async def end(database: Database, execution_id: UUID, status: ExecutionStatus = ExecutionStatus.SUCCESS) -> None:
    async with database.transaction() as session:
        assert await end_execution(session, execution_id, status, parent_id=None, output="1")


@covers("events.live")
async def test_changes_are_sent_immediately(live_database: Database, running: ExecutionRecord) -> None:
    async with run_server() as port, reading(port, events_path(running)) as reader:
        assert (await reader.event()).data["status"] == "running"
        for sequence, status in enumerate((StepStatus.RUNNING, StepStatus.WAITING, StepStatus.SUCCESS), 1):
            await write_step(live_database, running.id, "a", sequence, status)
            event = await reader.event()
            assert (event.kind, event.id) == ("step", str(sequence))
            assert (event.data["listener"], event.data["status"]) == ("a", status.value)
        await write_step(live_database, running.id, "b", 4, StepStatus.RUNNING)
        assert (await reader.event()).data["listener"] == "b"
        await end(live_database, running.id, ExecutionStatus.TIMEOUT)
        cancelled = await reader.event()
        assert (cancelled.data["listener"], cancelled.data["status"], cancelled.id) == ("b", "cancelled", "5")
        last = await reader.event()
        assert (last.kind, last.id, last.data["status"]) == ("execution", "end", "timeout")
        assert await reader.next() == "", "the stream ends"


@covers("events.alive")
async def test_idle_stream_sends_comments_and_is_closed_after_the_maximum_time(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (streaming.KEEPALIVE_SECONDS, streaming.MAX_STREAM_SECONDS) == (15, 3600)
    monkeypatch.setattr(streaming, "KEEPALIVE_SECONDS", 0.15)
    monkeypatch.setattr(streaming, "MAX_STREAM_SECONDS", 1.0)
    execution = await factories.create_execution(session, flow)
    text = (await client.get(events_path(execution))).text
    assert text.count(": ping\n\n") >= 2
    assert [(event.kind, event.id) for event in parse_events(text)] == [("execution", None)]


async def test_deleted_execution_ends_the_stream(
    live_client: httpx.AsyncClient, live_database: Database, running: ExecutionRecord
) -> None:
    async with run_server() as port, reading(port, events_path(running)) as reader:
        await reader.event()
        assert (await live_client.delete(f"{API}/flows/{running.flow_id}")).status_code == 204
        assert await reader.next() == ""
    refused = await live_client.get(events_path(running))
    assert_problem(refused, 404, "execution_not_found", "Execution not found")


async def test_poll_needs_two_statements(
    client: httpx.AsyncClient, ended: ExecutionRecord, database_engine: AsyncEngine
) -> None:
    with count_statements(database_engine) as statements:
        await client.get(events_path(ended))
    assert len(statements) == 4, "the user, the owner check, and one poll of two statements"


async def request_logged(logs: Sequence[EventDict], path: str) -> None:
    """Wait up to five seconds until a request has ended."""
    async with asyncio.timeout(5):
        while True:
            if any(str(line.get("route")).endswith(path) for line in logs):
                return
            await asyncio.sleep(0.01)


async def test_disconnected_client_ends_polling(live_database: Database, running: ExecutionRecord) -> None:
    with capture_logs() as logs:
        async with run_server() as port:
            async with reading(port, events_path(running)) as reader:
                await reader.event()
            await request_logged(logs, "/events")


def many_steps(execution: ExecutionRecord, count: int) -> list[ExecutionStepRecord]:
    return [
        ExecutionStepRecord(execution_id=execution.id, key=f":{number}", listener="a", sequence=number)
        for number in range(count)
    ]


async def test_stream_of_a_client_that_stops_reading_is_closed(
    live_database: Database, running: ExecutionRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """Its slot is free again, and nothing is logged as an error."""
    async with live_database.transaction() as session:
        session.add_all(many_steps(running, 500))
    settings = Settings(_env_file=None, write_timeout_seconds=0.1)
    with capture_logs() as logs:
        async with run_server(settings, send_buffer=4096) as port:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(head("GET", events_path(running)))
                await request_logged(logs, "/events")
                assert app.state.stream_slots._open.total() == 0
    assert [line.getMessage() for line in caplog.records if line.levelno >= logging.ERROR] == []


async def test_catching_up_ends_when_the_client_disconnects(
    live_database: Database, running: ExecutionRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of many steps reads them in batches without a pause."""
    monkeypatch.setattr(streaming, "STEP_BATCH_SIZE", 1)
    async with live_database.transaction() as session:
        session.add_all(many_steps(running, 20))
    disconnected = asyncio.Event()
    reads = 0

    async def send(message: Any) -> None:
        nonlocal reads
        if b"event: step" in message.get("body", b""):
            disconnected.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            reads += 1

    async def receive() -> Any:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    source = SessionSource(Request({"type": "http", "app": app}))
    watch = Watch(source, Shutdown(), running.id, with_steps=True)
    await EventStream(ExecutionWatcher(), watch, None)({"type": "http"}, receive, send)
    assert reads < 5


async def test_shutdown_ends_streams(live_database: Database, running: ExecutionRecord) -> None:
    async with httpx.AsyncClient() as client:
        async with asyncio.timeout(10), run_server() as port:
            request = client.build_request("GET", f"http://127.0.0.1:{port}{events_path(running)}")
            response = await client.send(request, stream=True)
        text = (await response.aread()).decode()
    assert [(event.kind, event.id) for event in parse_events(text)] == [("execution", None)]


@covers("events.no-connection")
async def test_open_streams_hold_no_connection(
    running: ExecutionRecord, live_settings: Settings, live_client: httpx.AsyncClient
) -> None:
    async with single_connection(live_settings) as database:
        streams = [asyncio.create_task(live_client.get(events_path(running))) for _ in range(10)]
        for number in range(10):
            await write_step(database, running.id, "a", number, StepStatus.RUNNING)
            assert (await live_client.get(f"{API}/flows/{running.flow_id}")).status_code == 200
        await end(database, running.id)
        for stream in streams:
            assert parse_events((await stream).text)[-1].id == "end"
