"""Interrupted tries: they are visible, use up no retries, and are repeated with the same key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError, Result
from bloxserver.clock import now
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.messages import (
    Failed,
    Finished,
    Message,
    Step,
    Suspended,
    Tokens,
    interrupted_steps,
)
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from tests.engine.pump_runs import Log, block, echo, organism, pump
from tests.engine.queue_claims import take
from tests.engine.run.test_agents import AGENT, settings_of
from tests.factories import create_execution, create_flow, create_user
from tests.listening import listening
from tests.llm_server import calls, language_model, says
from tests.steps import create_step

RETRIED = "name: a, handler: act, retries: 1, backoff_seconds: 0.001"


def running(listener: str = "a", **values: object) -> Step:
    """A step of an interrupted run."""
    return Step(Message(listener, None), "act", StepStatus.RUNNING, now(), sequence=1, **values)  # type: ignore[arg-type]


def tries(log: Log, listener: str = "a") -> list[tuple[StepStatus, int, int]]:
    """The saved states of a listener's step: status, attempt, interruptions."""
    return [(step.status, step.attempt, step.interruptions) for step in log.saved if step.message.listener == listener]


async def succeed(payload: JsonValue, context: BlockContext) -> Result:
    return "ok"


async def fail(payload: JsonValue, context: BlockContext) -> Result:
    raise BlockError("broken", "it broke")


async def test_an_interrupted_try_counts_before_the_next_one_starts() -> None:
    _, log = await pump(organism(RETRIED), kept=[running()], blocks=[block("act", succeed)])
    assert tries(log) == [(StepStatus.RUNNING, 2, 1), (StepStatus.SUCCESS, 2, 1)]
    assert len(log.changes) == 2


async def test_each_interruption_counts() -> None:
    kept = [running(attempt=3, interruptions=1)]
    _, log = await pump(organism(RETRIED), kept=kept, blocks=[block("act", succeed)])
    assert tries(log) == [(StepStatus.RUNNING, 4, 2), (StepStatus.SUCCESS, 4, 2)]


async def test_interruptions_use_up_no_retries() -> None:
    outcome, log = await pump(organism(RETRIED), kept=[running()], blocks=[block("act", fail)])
    assert tries(log) == [(StepStatus.RUNNING, 2, 1), (StepStatus.RETRYING, 2, 1), (StepStatus.ERROR, 3, 1)]
    assert outcome == Failed("a (attempt 3 of 3): it broke")


async def test_an_interrupted_retry_is_repeated_with_its_number() -> None:
    """The second try was interrupted after a first one that failed: the retry is still due."""
    outcome, log = await pump(organism(RETRIED), kept=[running(attempt=2)], blocks=[block("act", fail)])
    assert tries(log) == [(StepStatus.RUNNING, 3, 1), (StepStatus.ERROR, 3, 1)]
    assert outcome == Failed("a (attempt 3 of 3): it broke")


async def test_a_step_that_waits_was_not_interrupted() -> None:
    kept = [running(attempt=2, interruptions=1)._replace(status=StepStatus.RETRYING, completed_at=now())]
    _, log = await pump(organism(RETRIED), kept=kept, blocks=[block("act", succeed)])
    assert tries(log)[-1] == (StepStatus.SUCCESS, 3, 1)


class TestAgents:
    async def test_an_agent_that_waits_for_a_call_was_not_interrupted(self) -> None:
        text = organism(AGENT, "name: b, handler: delay, config: {seconds: 60}", echo("c"))
        async with language_model([calls(("b", {"input": 1})), says("Done.")]) as model:
            outcome, first = await pump(text, settings=settings_of(model))
            assert isinstance(outcome, Suspended)
            due = [step._replace(completed_at=now()) for step in first.steps]
            _, log = await pump(text, kept=due, settings=settings_of(model))
        assert {(step.message.listener, step.attempt, step.interruptions) for step in log.steps} == {
            ("a", 1, 0),
            ("b", 1, 0),
        }

    async def test_an_agent_that_asked_the_model_was_interrupted(self) -> None:
        text = organism(AGENT, echo("b"), echo("c"))
        async with language_model([calls(("b", {"input": 1})), says("Done.")]) as model:
            _, whole = await pump(text, settings=settings_of(model))
        kept = {step.message.key: step for step in whole.saved[:2]}  # with the first answer, and that of the tool
        async with language_model([says("Done.")]) as model:
            outcome, log = await pump(text, kept=list(kept.values()), settings=settings_of(model))
        assert outcome == Finished({"text": "Done."})
        assert tries(log)[-1] == (StepStatus.SUCCESS, 2, 1)
        assert log.step("a").tokens == Tokens(20, 10)

    async def test_a_call_that_was_interrupted_counts_and_its_agent_does_not(self) -> None:
        text = organism(AGENT, "name: b, handler: act", echo("c"))
        blocks = [block("act", succeed)]
        async with language_model([calls(("b", {"input": 1})), says("Done.")]) as model:
            _, whole = await pump(text, settings=settings_of(model), blocks=blocks)
        agent, call = whole.saved[0], whole.saved[1]._replace(status=StepStatus.RUNNING, completed_at=None)
        async with language_model([says("Done.")]) as model:
            _, log = await pump(text, kept=[agent, call], settings=settings_of(model), blocks=blocks)
        assert (tries(log)[-1], tries(log, "b")[-1]) == (
            (StepStatus.SUCCESS, 1, 0),
            (StepStatus.SUCCESS, 2, 1),
        )

    async def test_a_cancelled_call_has_a_duration(self) -> None:
        """From its own start, although it was never saved before."""
        started = asyncio.Event()

        async def never(payload: JsonValue, context: BlockContext) -> Result:
            started.set()
            await asyncio.Event().wait()
            return None

        text = organism(
            "name: a, prompt: p, peers: [b, {to: e, on: error}], timeout_seconds: 2",
            "name: b, handler: never",
            echo("e"),
        )
        async with language_model([says("Loaded."), calls(("b", {"input": 1}))]) as model:
            await pump(
                organism("name: a, prompt: p"), settings=settings_of(model)
            )  # the first use of a model takes long
            _, log = await pump(text, settings=settings_of(model), blocks=[block("never", never)])
        assert started.is_set()
        cancelled = log.step("b")
        assert (cancelled.status, cancelled.is_open) == (StepStatus.CANCELLED, False)
        assert cancelled.duration_ms is not None
        assert cancelled.duration_ms > 200


@asynccontextmanager
async def server() -> AsyncIterator[tuple[str, list[bytes], asyncio.Event]]:
    """A server that answers once the event is set: its address, and the requests that it has received."""
    requests: list[bytes] = []
    may_answer = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        await may_answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    async with listening(respond) as port:
        yield f"http://127.0.0.1:{port}/", requests, may_answer
        may_answer.set()


async def stored_steps(database: Database, execution_id: UUID) -> list[ExecutionStepRecord]:
    async with database.sessions() as session:
        return list(
            await session.scalars(
                sa.select(ExecutionStepRecord)
                .where(ExecutionStepRecord.execution_id == execution_id)
                .order_by(ExecutionStepRecord.sequence)
            )
        )


@pytest.mark.parametrize("way", ["recovered", "released"])
async def test_repeated_request_is_the_second_attempt(
    live_database: Database, clients: SharedClients, way: str
) -> None:
    async with server() as (url, requests, may_answer):
        text = organism(
            echo("a", "b"), f"name: b, handler: http.request, config: {{url: '{url}'}}, timeout_seconds: 60"
        )
        async with live_database.sessions() as session:
            flow = await create_flow(session, await create_user(session), organism_yaml=text)
            execution = await create_execution(session, flow)
        first = Worker(live_database, clients)
        first.begin(await take(live_database, execution, "w-1"), lambda: None)
        async with asyncio.timeout(20):
            while not requests:  # noqa: ASYNC110  # nothing notifies
                await asyncio.sleep(0.01)
        if way == "recovered":
            async with live_database.transaction() as session:
                await reclaim_all(session)
        await first.drain(0)
        may_answer.set()
        await Worker(live_database, clients).run(await take(live_database, execution, "w-2"))
    steps = {step.listener: step for step in await stored_steps(live_database, execution.id)}
    assert len(requests) == 2
    assert (steps["b"].status, steps["b"].attempt, steps["b"].interruptions) == (StepStatus.SUCCESS, 2, 1)
    assert (steps["a"].attempt, steps["a"].interruptions) == (1, 0)


async def test_a_repeated_call_finds_the_execution_that_it_started(
    live_database: Database, clients: SharedClients
) -> None:
    text = organism("name: a, handler: flow.call, config: {flow: Callee}, retries: 1, backoff_seconds: 0.001")
    async with live_database.sessions() as session:
        user = await create_user(session)
        callee = await create_flow(session, user, name="Callee")
        caller = await create_flow(session, user, organism_yaml=text)
        parent = await create_execution(session, caller, picked_up_at=now())
        called = await create_execution(
            session, callee, parent_id=parent.id, parent_key=":a#1", resume_at=now() + timedelta(hours=1)
        )
        await create_step(session, parent, status=StepStatus.RUNNING, handler="flow.call", input_payload="{}")
    worker = Worker(live_database, clients)
    await worker.run(await take(live_database, parent))
    (step,) = await stored_steps(live_database, parent.id)
    assert (step.status, step.attempt, step.interruptions, step.called_id) == (StepStatus.CALLING, 2, 1, called.id)
    async with live_database.transaction() as session:
        await session.execute(
            sa.update(ExecutionRecord)
            .where(ExecutionRecord.id == called.id)
            .values(status=ExecutionStatus.ERROR, completed_at=now())
        )
        await session.execute(sa.update(ExecutionRecord).where(ExecutionRecord.id == parent.id).values(resume_at=now()))
    await worker.run(await take(live_database, parent))
    (step,) = await stored_steps(live_database, parent.id)
    assert (step.status, step.attempt, step.interruptions) == (StepStatus.CALLING, 3, 1)
    assert step.called_id not in (None, called.id), "a retry is a new call"
    async with live_database.sessions() as session:
        keys = await session.scalars(
            sa.select(ExecutionRecord.parent_key).where(ExecutionRecord.parent_id == parent.id)
        )
        assert set(keys) == {":a#1", ":a#2"}


@pytest.mark.parametrize("status", [StepStatus.SUCCESS, StepStatus.ERROR])
def test_loop_is_not_interrupted_although_its_items_have_ended(status: StepStatus) -> None:
    loop = Step(Message("a", None), "echo", StepStatus.RUNNING, now())
    item = Step(Message("a", 1, loop.id, "[0]"), "echo", status, now(), completed_at=now())
    assert interrupted_steps([loop, item]) == []
    [interrupted] = interrupted_steps([loop])
    assert (interrupted.attempt, interrupted.interruptions) == (2, 1)
