"""Callers that run other branches get the results of called executions as soon as these end."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.engine import Engine
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.call_results import CallResults
from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord
from bloxserver.services.transitions import end_execution
from bloxserver.settings import Settings
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.engine.running_engine import accept, eventually, run, running_engine, started_flow, steps_of
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements

CALLER = """
organism: {{name: caller}}
listeners:
  - {{name: start, description: d, handler: echo, peers: [call, slow]}}
  - {{name: call, description: d, handler: flow.call, config: {{flow: Called}}, peers: [after]}}
  - {{name: slow, description: d, handler: http.request, config: {{url: "{url}/slow"}}}}
  - {{name: after, description: d, handler: http.request, config: {{url: "{url}/after"}}}}
"""
ENDS_AT_ONCE = "organism: {name: called}\nlisteners: [{name: a, description: d, handler: echo}]"
WAITS = """
organism: {name: called}
listeners: [{name: a, description: d, handler: delay, config: {seconds: 3600}}]
"""


class Gate:
    """A server whose `/slow` answers once the gate is open. Events show which paths were requested."""

    def __init__(self, server: LoopbackServer) -> None:
        self.url = server.url("")
        self.open, self.slow, self.after = asyncio.Event(), asyncio.Event(), asyncio.Event()
        server.answers |= {"/slow": self._slow, "/after": self._after}

    async def _slow(self, writer: StreamWriter) -> None:
        self.slow.set()
        await self.open.wait()
        writer.write(answer(b"slow"))

    async def _after(self, writer: StreamWriter) -> None:
        self.after.set()
        writer.write(answer(b"after"))


@asynccontextmanager
async def gated() -> AsyncIterator[Gate]:
    async with running_server() as server:
        gate = Gate(server)
        try:
            yield gate
        finally:
            gate.open.set()


async def wait_for(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


async def test_the_next_step_runs_while_another_branch_is_busy(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    async with gated() as gate, running_engine(live_settings, live_database):
        await started_flow(live_client, ENDS_AT_ONCE, name="Called")
        path = await started_flow(live_client, CALLER.format(url=gate.url))
        running = asyncio.create_task(run(live_client, path, "x"))
        await wait_for(gate.slow)
        await wait_for(gate.after)
        assert not running.done()
        gate.open.set()
        assert (await running)["status"] == "success"


@pytest.mark.parametrize("status", [ExecutionStatus.SUCCESS, ExecutionStatus.ERROR])
async def test_end_without_a_wake_up_is_found_by_polling(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, status: ExecutionStatus
) -> None:
    """The end is written through another `Database`, without an engine that notifies others."""
    caller = CALLER.replace("peers: [after]", "peers: [after, {{to: after, on: error}}]")
    other = Database(live_settings)
    async with gated() as gate, running_engine(live_settings, live_database):
        await started_flow(live_client, WAITS, name="Called")
        path = await started_flow(live_client, caller.format(url=gate.url))
        execution = await accept(live_client, path, "x")
        await wait_for(gate.slow)
        called = await called_execution(live_database)
        async with other.transaction() as session:
            assert await end_execution(session, called.id, status, parent_id=called.parent_id, output="1", error="e")
        await wait_for(gate.after)
        gate.open.set()
        assert (await eventually(live_client, execution, {"success"}))["status"] == "success"
        by_listener = {step["listener"]: step["status"] for step in await steps_of(live_client, execution)}
        assert by_listener["call"] == status.value
    await other.dispose()


async def called_execution(database: Database) -> ExecutionRecord:
    """The called execution, once a worker has suspended it."""
    suspended = sa.select(ExecutionRecord).where(
        ExecutionRecord.parent_id.is_not(None), ExecutionRecord.resume_at.is_not(None)
    )
    async with asyncio.timeout(10):
        while True:
            async with database.transaction(read_only=True) as session:
                if (found := await session.scalar(suspended)) is not None:
                    return found
            await asyncio.sleep(0.01)


async def test_deleted_callee_fails_the_call(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    caller = CALLER.replace("peers: [after]", "peers: [{{to: after, on: error}}]")
    async with gated() as gate, running_engine(live_settings, live_database):
        called = await started_flow(live_client, WAITS, name="Called")
        path = await started_flow(live_client, caller.format(url=gate.url))
        execution = await accept(live_client, path, "x")
        await wait_for(gate.slow)
        await called_execution(live_database)
        await live_client.delete(called)
        await wait_for(gate.after)
        [call] = [step for step in await steps_of(live_client, execution) if step["listener"] == "call"]
        assert call["errorCode"] in {"call_lost", "call_failed"}


class NoWaits:
    listeners: frozenset[str] = frozenset()

    def resolve(self, listeners: Collection[str]) -> None:
        raise AssertionError(f"nothing waits for {listeners}")


class Waiting:
    """A caller that waits for some executions."""

    def __init__(self, *called: UUID) -> None:
        self.pending_calls = frozenset(called)
        self.waits = NoWaits()
        self.results: list[Mapping[UUID, CalledResult | None]] = []
        self.resolved = asyncio.Event()

    def resolve_calls(self, results: Mapping[UUID, CalledResult | None]) -> None:
        self.results.append(results)
        self.resolved.set()


async def called_by(session: AsyncSession, number: int) -> list[tuple[UUID, UUID]]:
    """Callers, each with an execution that it called."""
    flow = await create_flow(session, await create_user(session))
    pairs = []
    for _ in range(number):
        caller = await create_execution(session, flow)
        called = await create_execution(
            session, flow, status=ExecutionStatus.SUCCESS, output_payload="1", parent_id=caller.id, parent_key="k"
        )
        pairs.append((caller.id, called.id))
    return pairs


async def test_one_statement_reads_the_calls_of_all_callers(live_database: Database) -> None:
    async with live_database.sessions() as session:
        pairs = await called_by(session, 20)
    gone = new_id()
    callers = {execution_id: Waiting(called_id, gone) for execution_id, called_id in pairs}
    results = CallResults(live_database, poll_seconds=3600)
    with ExitStack() as stack, count_statements(live_database.reading_engine) as statements:
        for execution_id, caller in callers.items():
            stack.enter_context(results.passed_to(caller, execution_id))
        results.wake()
        reading = asyncio.create_task(results.run())
        await asyncio.gather(*(wait_for(caller.resolved) for caller in callers.values()))
        reading.cancel()
    assert len(statements) == 1
    success = CalledResult(ExecutionStatus.SUCCESS, "1", None)
    assert [caller.results for caller in callers.values()] == [
        [{called_id: success, gone: None}] for _, called_id in pairs
    ]


async def test_the_result_of_a_call_of_another_execution_is_not_passed_on(live_database: Database) -> None:
    async with live_database.sessions() as session:
        [(_, called_id)] = await called_by(session, 1)
    caller = Waiting(called_id)
    results = CallResults(live_database, poll_seconds=3600)
    with results.passed_to(caller, new_id()):
        results.wake()
        reading = asyncio.create_task(results.run())
        await wait_for(caller.resolved)
        reading.cancel()
    assert caller.results == [{called_id: None}]


async def test_nothing_is_read_while_no_caller_waits(live_client: httpx.AsyncClient, engine: Engine) -> None:
    """A suspended caller needs no read either: the end of the called execution resumes it."""
    await started_flow(live_client, ENDS_AT_ONCE, name="Called")
    call = "organism: {name: x}\nlisteners: [{name: a, description: d, handler: flow.call, config: {flow: Called}}]"
    path = await started_flow(live_client, call)
    with count_statements(engine._database.reading_engine) as statements:
        assert (await run(live_client, path, "x"))["status"] == "success"
    read = [
        one for one in statements if one.startswith("SELECT executions.parent_id, executions.id, executions.status")
    ]
    assert len(read) <= 1, "one when the resumed execution is loaded"
