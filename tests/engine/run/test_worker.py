"""The worker with a real database: leases, checkpoints and ends of executions."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.queue import leases
from bloxserver.engine.queue.checkpoints import CheckpointWriter
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.runner import MAX_CRASHES, ExecutionRunner
from bloxserver.engine.run.serialization import payload_of
from bloxserver.engine.run.worker import Worker
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    ExecutionStepRecord,
    FlowRecord,
    StepStatus,
    UserRecord,
)
from bloxserver.settings import Settings
from tests.engine.queue_claims import claimer_of, ended, take
from tests.factories import create_execution, create_flow, create_user
from tests.listening import listening, never_answer


@pytest.fixture
def worker(live_database: Database, clients: SharedClients) -> Worker:
    return Worker(live_database, clients)


async def accepted(database: Database, organism: str | None = None, **values: Any) -> ExecutionRecord:
    async with database.sessions() as session:
        user = await create_user(session)
        flow = await create_flow(session, user, **({"organism_yaml": organism} if organism else {}))
        return await create_execution(session, flow, **values)


async def stored(database: Database, execution: ExecutionRecord) -> ExecutionRecord:
    async with database.sessions() as session:
        return await session.get_one(ExecutionRecord, execution.id)


async def steps_of(database: Database, execution: ExecutionRecord) -> list[ExecutionStepRecord]:
    async with database.sessions() as session:
        steps = await session.scalars(
            sa.select(ExecutionStepRecord)
            .where(ExecutionStepRecord.execution_id == execution.id)
            .order_by(ExecutionStepRecord.id)
        )
        return list(steps)


DELAYED = """\
organism: {name: delayed}
listeners:
  - {name: first, description: d, handler: echo, peers: [wait]}
  - {name: wait, description: d, handler: delay, config: {seconds: 3600}, peers: [last]}
  - {name: last, description: d, handler: echo}
"""


async def test_an_execution_ends_with_output_and_steps(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database, input_payload='{"name": "Ada"}')
    await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert ended.status is ExecutionStatus.SUCCESS
    assert json.loads(ended.output_payload or "") == {"message": "Hello, Ada!"}
    assert ended.completed_at is not None
    assert ended.duration_ms == int((ended.completed_at - ended.started_at).total_seconds() * 1000)
    (step,) = await steps_of(live_database, execution)
    assert (step.listener, step.handler, step.status) == (
        "greeter",
        "handlers.hello.handle_greeting",
        StepStatus.SUCCESS,
    )
    assert json.loads(step.input_payload or "") == {"name": "Ada"}


@pytest.mark.parametrize(
    ("organism", "error"),
    [
        ("listeners: }", "line 1, column 12"),
        ("organism: {name: x}\nlisteners:\n  - {name: a, description: d, handler: nope}\n", "line 3, column"),
    ],
)
async def test_a_definition_that_cannot_run_ends_in_error(
    live_database: Database, worker: Worker, organism: str, error: str
) -> None:
    execution = await accepted(live_database, organism)
    await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert ended.status is ExecutionStatus.ERROR
    assert error in (ended.error_message or "")


@pytest.mark.parametrize("name", ["x\\u0000", "connection\\ud800"])
async def test_error_with_unstorable_text_is_saved(live_database: Database, worker: Worker, name: str) -> None:
    text = "organism: {name: x}\nlisteners:\n  - {name: a, description: d, handler: http.request}\n"
    payload = f'{{"url": "http://x.example/", "headers": {{"{name}": 5}}}}'
    execution = await accepted(live_database, text, input_payload=payload)
    async with asyncio.timeout(20):
        await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert ended.status is ExecutionStatus.ERROR
    assert (ended.error_message or "").startswith("a: ")
    assert [step.status for step in await steps_of(live_database, execution)] == [StepStatus.ERROR]


async def test_an_unknown_target_ends_in_error(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database, target="nobody")
    await worker.run(await take(live_database, execution))
    assert (await stored(live_database, execution)).error_message == 'there is no listener "nobody"'


async def test_execution_exceeding_its_timeout_ends_as_timeout(live_database: Database, worker: Worker) -> None:
    async with listening(never_answer) as port:
        slow = f"handler: http.request, config: {{url: 'http://127.0.0.1:{port}/'}}"
        text = DELAYED.replace("handler: delay, config: {seconds: 3600}", slow)
        execution = await accepted(live_database, text + "execution: {timeout_seconds: 0.3}\n")
        await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert ended.status is ExecutionStatus.TIMEOUT
    assert ended.error_message == "not finished within 0.3 seconds (execution.timeout_seconds); running: wait"
    steps = await steps_of(live_database, execution)
    assert [(step.listener, step.status) for step in steps] == [
        ("first", StepStatus.SUCCESS),
        ("wait", StepStatus.CANCELLED),
    ]


async def test_run_time_before_a_suspension_counts_towards_the_timeout(live_database: Database, worker: Worker) -> None:
    text = DELAYED + "execution: {timeout_seconds: 100}\n"
    execution = await accepted(live_database, text)
    await worker.run(await take(live_database, execution))
    suspended = await stored(live_database, execution)
    assert 0 <= suspended.active_ms < 20_000
    async with live_database.transaction() as session:
        await session.execute(sa.update(ExecutionRecord).values(active_ms=100_000, resume_at=now()))
        await session.execute(sa.update(ExecutionStepRecord).values(completed_at=now()))
    await worker.run(await take(live_database, execution))
    assert (await stored(live_database, execution)).status is ExecutionStatus.TIMEOUT


async def test_waiting_execution_is_suspended_and_resumes_when_due(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database, DELAYED, input_payload='"m"')
    await worker.run(await take(live_database, execution))
    suspended = await stored(live_database, execution)
    assert (suspended.status, suspended.lease, suspended.worker_id) == (ExecutionStatus.RUNNING, None, None)
    assert suspended.resume_at is not None
    assert suspended.resume_at > now() + timedelta(seconds=3590)
    async with live_database.transaction() as session:
        await session.execute(sa.update(ExecutionStepRecord).values(completed_at=now()))
        await session.execute(sa.update(ExecutionRecord).values(resume_at=now()))
    await worker.run(await take(live_database, execution))
    ended = await stored(live_database, execution)
    assert (ended.status, ended.output_payload) == (ExecutionStatus.SUCCESS, '"m"')
    steps = await steps_of(live_database, execution)
    assert [(step.listener, step.status) for step in steps] == [
        ("first", StepStatus.SUCCESS),
        ("wait", StepStatus.SUCCESS),
        ("last", StepStatus.SUCCESS),
    ]


async def test_worker_without_the_lease_writes_nothing(live_database: Database, clients: SharedClients) -> None:
    execution = await accepted(live_database)

    frozen = await take(live_database, execution, "w-frozen")
    async with live_database.transaction() as session:
        assert len(await reclaim_all(session)) == 1
    present = await take(live_database, execution, "w-present")
    thawed = ExecutionRunner(live_database, CheckpointWriter(live_database), clients, frozen)
    with pytest.raises(LeaseLost):
        await thawed.run()
    with pytest.raises(LeaseLost):
        async with live_database.transaction() as session:
            await leases.lock_lease(session, frozen.lease_key)
    with pytest.raises(LeaseLost):
        async with live_database.transaction() as session:
            await leases.suspend(session, frozen, now())
    with pytest.raises(LeaseLost):
        async with live_database.transaction() as session:
            await leases.end_execution(session, frozen, ExecutionStatus.ERROR, error="zombie")
    async with live_database.transaction() as session:
        await leases.end_execution(session, present, ExecutionStatus.SUCCESS, output="1")
    ended = await stored(live_database, execution)
    assert (ended.status, ended.error_message) == (ExecutionStatus.SUCCESS, None)
    assert await steps_of(live_database, execution) == []


async def test_an_execution_ends_once(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database)
    taken = await take(live_database, execution)
    await asyncio.gather(*(worker.run(taken) for _ in range(5)))
    first = await stored(live_database, execution)
    assert first.status is ExecutionStatus.SUCCESS
    await worker.run(taken)
    again = await stored(live_database, execution)
    assert again.completed_at == first.completed_at
    assert len(await steps_of(live_database, execution)) == 1


async def test_thousands_of_steps_can_end_together(live_database: Database, worker: Worker) -> None:
    middle, leaves = [f"m{i}" for i in range(60)], [f"l{i}" for i in range(50)]
    chain = [("root", middle), *((name, leaves) for name in middle), *((name, []) for name in leaves)]
    listeners = "".join(
        f"  - {{name: {name}, description: d, handler: echo, peers: [{', '.join(peers)}]}}\n" for name, peers in chain
    )
    text = f"organism: {{name: wide}}\nlisteners:\n{listeners}execution: {{max_iterations: 10000}}\n"
    execution = await accepted(live_database, text)
    await worker.run(await take(live_database, execution))
    assert (await stored(live_database, execution)).status is ExecutionStatus.SUCCESS
    assert len(await steps_of(live_database, execution)) == 1 + 60 + 60 * 50


async def test_execution_with_too_large_steps_fails(live_database: Database, worker: Worker) -> None:
    many = [f"l{number}" for number in range(40)]
    listeners = "".join(f"  - {{name: {name}, description: d, handler: echo}}\n" for name in many)
    text = f"""\
organism: {{name: wide}}
listeners:
  - {{name: root, description: d, handler: echo, peers: [{", ".join(many)}]}}
{listeners}"""
    execution = await accepted(live_database, text, input_payload=json.dumps("x" * 2**21))
    await worker.run(await take(live_database, execution))
    left = await stored(live_database, execution)
    assert left.status is ExecutionStatus.ERROR
    assert left.error_message == "the inputs and outputs of its steps are larger than 64 MiB"
    steps = await steps_of(live_database, execution)
    assert sum(len(step.input_payload or "") + len(step.output_payload or "") for step in steps) <= 64 * 2**20


async def test_temporary_database_errors_strand_no_execution(
    live_database: Database, clients: SharedClients, live_settings: Settings
) -> None:
    """As in a failed deployment: the error is not transient, so the statement is not retried."""
    worker = Worker(live_database, clients, retry_seconds=0.05)
    claimer = asyncio.create_task((await claimer_of(live_settings, live_database, worker, "w-test")).run())
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE execution_steps RENAME TO elsewhere"))
    execution = await accepted(live_database)
    await asyncio.wait([claimer], timeout=0.3)
    assert not claimer.done()
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE elsewhere RENAME TO execution_steps"))
    await ended(live_database, execution)
    claimer.cancel()
    await asyncio.wait([claimer])
    assert (await stored(live_database, execution)).status is ExecutionStatus.SUCCESS


async def test_execution_that_cannot_be_saved_is_released(live_database: Database, clients: SharedClients) -> None:
    execution = await accepted(live_database)
    taken = await take(live_database, execution)
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE execution_steps RENAME COLUMN attempt TO elsewhere"))
    async with asyncio.timeout(20):
        await Worker(live_database, clients, retry_seconds=0.05).run(taken)
    # The end was saved, although the step could not be saved.
    left = await stored(live_database, execution)
    assert (left.status, left.error_message) == (ExecutionStatus.ERROR, "internal error")


@pytest.mark.parametrize("crash_count", [MAX_CRASHES, MAX_CRASHES + 1])
async def test_execution_with_too_many_crashes_fails(live_database: Database, worker: Worker, crash_count: int) -> None:
    execution = await accepted(live_database, crash_count=crash_count)
    await worker.run(await take(live_database, execution))
    left = await stored(live_database, execution)
    assert left.status is ExecutionStatus.ERROR
    assert left.error_message == f"given up: {crash_count} workers in a row crashed while they ran it"
    assert await steps_of(live_database, execution) == []


async def test_completed_step_resets_the_crash_count(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database, DELAYED, crash_count=MAX_CRASHES - 1)
    await worker.run(await take(live_database, execution))
    left = await stored(live_database, execution)
    assert (left.status, left.crash_count) == (ExecutionStatus.RUNNING, 0)


async def test_deleted_flow_ends_its_execution_without_an_error(live_database: Database, worker: Worker) -> None:
    execution = await accepted(live_database)
    taken = await take(live_database, execution)
    async with live_database.transaction() as session:
        await session.execute(sa.delete(FlowRecord))
        await session.execute(sa.delete(UserRecord))
    await worker.run(taken)
    async with live_database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 0


async def test_drain_releases_unfinished_executions(live_database: Database, worker: Worker) -> None:
    requested = asyncio.Event()

    async def note_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requested.set()
        await never_answer(reader, writer)

    async with listening(note_and_wait) as port:
        text = DELAYED.replace(
            "handler: delay, config: {seconds: 3600}",
            f"handler: http.request, config: {{url: 'http://127.0.0.1:{port}/'}}",
        )
        execution = await accepted(live_database, text)
        worker.begin(await take(live_database, execution), lambda: None)
        await requested.wait()
        assert {execution_id for execution_id, _ in worker.lease_keys} == {execution.id}
        assert worker.free_slots()["free"] == 49
        await worker.drain(0)
        assert worker.lease_keys == frozenset()
    left = await stored(live_database, execution)
    assert (left.status, left.lease, left.worker_id, left.crash_count) == (ExecutionStatus.RUNNING, None, None, 0)
    steps = await steps_of(live_database, execution)
    assert [(step.listener, step.status) for step in steps] == [
        ("first", StepStatus.SUCCESS),
        ("wait", StepStatus.RUNNING),
    ]


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        (None, {}),
        ("", {"text": ""}),
        ("plain", {"text": "plain"}),
        ("[1]", [1]),
        ('"s"', "s"),
        ("null", None),
        ("NaN", {"text": "NaN"}),
        ("[1e400]", {"text": "[1e400]"}),
        ("[1e3]", [1000.0]),
        ("[" * 200 + "]" * 200, json.loads("[" * 200 + "]" * 200)),
        ("[" * 201 + "]" * 201, {"text": "[" * 201 + "]" * 201}),
        ('{"a":' * 300 + "1" + "}" * 300, {"text": '{"a":' * 300 + "1" + "}" * 300}),
        ("[[]" + ",[]" * 500 + "]", [[]] * 501),
        ("[" * 100_000, {"text": "[" * 100_000}),
        ("9" * 5_000, {"text": "9" * 5_000}),
        ('\ufeff{"name": "Ada"}', {"name": "Ada"}),
        ("\ufeff", {"text": "\ufeff"}),
        ("\ufeffplain", {"text": "\ufeffplain"}),
        ("\ufeff\ufeff[1]", {"text": "\ufeff\ufeff[1]"}),
    ],
)
def test_the_input_is_json_or_text(text: str | None, payload: Any) -> None:
    assert payload_of(text) == payload
