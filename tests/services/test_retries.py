"""Retries: the executions that are accepted, and the steps that they copy."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, NotFound
from bloxserver.ids import new_id
from bloxserver.models.enums import NOT_NEEDED, StepStatus
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    ExecutionStepRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    ResumptionRecord,
    UsageRecord,
    UserRecord,
)
from bloxserver.plans import PLANS
from bloxserver.queries.resumptions import read_received
from bloxserver.queries.usage import period_at
from bloxserver.services.retries import RetryFrom, RetryVersion, retry_execution
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements
from tests.steps import create_step

SUCCESS, ERROR, CANCELLED = StepStatus.SUCCESS, StepStatus.ERROR, StepStatus.CANCELLED
Copies = dict[str, ExecutionStepRecord]


@pytest.fixture
async def failed(session: AsyncSession, flow: FlowRecord) -> ExecutionRecord:
    return await create_execution(session, flow, status=ExecutionStatus.ERROR)


async def retried(session: AsyncSession, flow: FlowRecord, execution: ExecutionRecord) -> list[ExecutionStepRecord]:
    """The steps of a retry from the failed steps, in the order of their sequence numbers."""
    period = period_at(now(), None, None)
    retry = await retry_execution(
        session,
        flow.user_id,
        PLANS["pro"],
        period,
        flow.id,
        execution.id,
        begin=RetryFrom.FAILED,
        version=RetryVersion.SAME,
    )
    await session.commit()
    steps = sa.select(ExecutionStepRecord).where(ExecutionStepRecord.execution_id == retry.id)
    return list(await session.scalars(steps.order_by(ExecutionStepRecord.sequence)))


async def test_finished_steps_are_copied_unchanged(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    entry = await create_step(
        session,
        failed,
        "entry",
        sequence=7,
        handler="echo",
        attempt=3,
        interruptions=1,
        input_payload='{"a": "é\U0001f30d"}',
        output_payload="1",
        completed_at=now(),
        duration_ms=5,
        input_tokens=10,
        output_tokens=20,
        routed_to=["next", "other"],
        called_id=new_id(),
        state='{"b": 1}',
    )
    following = await create_step(session, failed, "next", parent=entry, sequence=9)
    await create_step(session, failed, "last", parent=following, sequence=12, status=ERROR, error_message="why")
    copies = await retried(session, flow, failed)
    assert [(copy.listener, copy.sequence) for copy in copies] == [("entry", 1), ("next", 2)]
    first, second = copies
    assert first.key == ":entry"
    assert (second.parent_id, second.key) == (first.id, f"{first.id}:next")
    assert not {first.id, second.id} & {entry.id, following.id}
    fresh = {"id", "execution_id", "key", "sequence", "parent_id", "copied", "input_tokens", "output_tokens"}
    for name in {column.key for column in ExecutionStepRecord.__table__.columns} - fresh:
        assert getattr(first, name) == getattr(entry, name), name
    assert (first.copied, first.input_tokens, first.output_tokens) == (True, 0, 0)
    await session.refresh(entry)
    assert (entry.copied, entry.input_tokens, entry.execution_id) == (False, 10, failed.id)


async def test_failed_steps_and_their_descendants_are_repeated(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    entry = await create_step(session, failed, "entry", sequence=1)
    cut = await create_step(session, failed, "cut", parent=entry, sequence=2, status=CANCELLED)
    await create_step(session, failed, "below", parent=cut, sequence=3)
    await create_step(session, failed, "waited", parent=entry, sequence=4, status=StepStatus.WAITING)
    await create_step(session, failed, "orphan", sequence=5, parent_id=new_id())
    assert [copy.listener for copy in await retried(session, flow, failed)] == ["entry"]


async def test_handled_error_counts_as_finished(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    entry = await create_step(session, failed, "entry", sequence=1)
    routed = await create_step(session, failed, "routed", parent=entry, sequence=2, status=ERROR, error_code="odd")
    await create_step(session, failed, "handler", parent=routed, sequence=3)
    await create_step(session, failed, "second", parent=routed, sequence=4, status=ERROR)
    await create_step(session, failed, "failed", parent=entry, sequence=5, status=ERROR)
    copies = await retried(session, flow, failed)
    assert [(copy.listener, copy.status) for copy in copies] == [
        ("entry", SUCCESS),
        ("routed", ERROR),
        ("handler", SUCCESS),
    ]
    assert copies[1].error_code == "odd"


async def test_calls_of_an_agent_are_copied_only_with_the_agent(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    done = await create_step(session, failed, "done", sequence=3)
    await create_step(session, failed, "tool", parent=done, call="1.0", sequence=1)
    await create_step(session, failed, "tool", parent=done, call="1.1", sequence=2, status=ERROR)
    agent = await create_step(session, failed, "agent", parent=done, sequence=6, status=ERROR)
    await create_step(session, failed, "tool", parent=agent, call="1.0", sequence=4)
    await create_step(session, failed, "tool", parent=agent, call="1.1", sequence=5)
    copies = await retried(session, flow, failed)
    assert [copy.listener for copy in copies] == ["tool", "tool", "done"]
    called = copies[-1].id
    assert [copy.key for copy in copies] == [f"{called}:tool:1.0", f"{called}:tool:1.1", ":done"]
    assert copies[1].status is ERROR, "the agent received the error"


async def test_a_join_is_copied_with_its_key_and_the_new_parent(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    entry = await create_step(session, failed, "entry", sequence=1)
    routed = await create_step(session, failed, "b", parent=entry, sequence=2, status=ERROR, routed_to=["j"])
    last = await create_step(session, failed, "c", parent=entry, sequence=3)
    joined = await create_step(session, failed, "j", parent=last, sequence=4, key=":j:join")
    await create_step(session, failed, "end", parent=joined, sequence=5, status=ERROR)
    copies = {copy.listener: copy for copy in await retried(session, flow, failed)}
    assert copies.keys() == {"entry", "b", "c", "j"}
    assert (copies["j"].key, copies["j"].parent_id) == (":j:join", copies["c"].id)
    assert copies["b"].routed_to == routed.routed_to


async def test_a_join_that_failed_is_repeated(session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord) -> None:
    sender = await create_step(session, failed, "entry", sequence=1)
    await create_step(session, failed, "j", parent=sender, sequence=2, key=":j:join", status=ERROR)
    assert [copy.listener for copy in await retried(session, flow, failed)] == ["entry"]


async def test_steps_that_a_join_did_not_need_are_not_repeated(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    entry = await create_step(session, failed, "entry", sequence=1)
    values: dict[str, Any] = {"status": CANCELLED, "error_code": NOT_NEEDED}
    await create_step(session, failed, "slow", parent=entry, sequence=2, **values)
    await create_step(session, failed, "cut", parent=entry, sequence=3, status=CANCELLED)
    copies = await retried(session, flow, failed)
    assert [(copy.listener, copy.status) for copy in copies] == [("entry", SUCCESS), ("slow", CANCELLED)]


async def test_received_calls_are_copied_unless_their_listeners_ask_again(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    """An answer to the tool of a failed agent must not answer what the agent asks in the retry."""
    entry = await create_step(session, failed, "entry", sequence=1)
    await create_step(session, failed, "answered", parent=entry, sequence=2)
    agent = await create_step(session, failed, "agent", parent=entry, sequence=3, status=ERROR)
    await create_step(session, failed, "tool", parent=agent, key=f"{agent.id}:tool:call", sequence=4)
    for listener in ("answered", "tool", "not_begun"):
        session.add(ResumptionRecord(execution_id=failed.id, listener=listener, payload="1", answered_by={}))
    [copy, *_] = await retried(session, flow, failed)
    copied = await read_received(session, copy.execution_id)
    assert copied == {"answered": "1", "not_begun": "1"}


async def test_thousands_of_steps_take_few_statements(
    session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord, database_engine: AsyncEngine
) -> None:
    entry = await create_step(session, failed, "entry", sequence=1)
    rows, parent_id = [], entry.id
    for number in range(2, 3_001):
        step_id, listener = new_id(), f"l{number}"
        rows.append(
            {
                "id": step_id,
                "execution_id": failed.id,
                "key": f"{parent_id}:{listener}",
                "parent_id": parent_id,
                "listener": listener,
                "sequence": number,
                "status": SUCCESS if number < 3_000 else ERROR,
            }
        )
        parent_id = step_id if number % 3 else entry.id
    await session.execute(sa.insert(ExecutionStepRecord), rows)
    await session.commit()
    with count_statements(database_engine) as statements:
        copies = await retried(session, flow, failed)
    assert len(copies) == 2_999
    assert len(statements) < 20
    by_id = {copy.id: copy for copy in copies}
    assert all(copy.parent_id is None or by_id[copy.parent_id].sequence < copy.sequence for copy in copies)
    assert [copy.listener for copy in copies] == ["entry", *(f"l{number}" for number in range(2, 3_000))]


async def retry(session: AsyncSession, user_id: UUID, flow_id: UUID, execution_id: UUID, **options: Any) -> Any:
    choices = {"begin": RetryFrom.START, "version": RetryVersion.SAME} | options
    period = period_at(now(), None, None)
    return await retry_execution(session, user_id, PLANS["pro"], period, flow_id, execution_id, **choices)


@pytest.mark.parametrize("version", RetryVersion)
async def test_retry_has_the_input_and_the_requested_version(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, version: RetryVersion
) -> None:
    active = FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="active")
    session.add(active)
    await session.flush()
    flow.organism_yaml = "changed"
    values = {"flow_version_id": active.id, "flow_version": 1, "target": "a", "input_payload": "in"}
    original = await create_execution(session, flow, status=ExecutionStatus.SUCCESS, **values)
    execution = await retry(session, user.id, flow.id, original.id, version=version)
    assert (execution.retry_of, execution.target, execution.input_payload) == (original.id, "a", "in")
    assert execution.status is ExecutionStatus.RUNNING
    if version is RetryVersion.SAME:
        assert (execution.flow_version_id, execution.flow_version) == (active.id, 1)
    else:
        assert execution.flow_version == flow.latest_version == 2
        assert (await session.get_one(FlowVersionRecord, execution.flow_version_id)).organism_yaml == "changed"
    assert await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) == 1


async def test_retry_in_another_flow_or_of_another_user_is_not_found(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, failed: ExecutionRecord
) -> None:
    other, other_flow = await create_user(session), await create_flow(session, user)
    for user_id, flow_id in ((other.id, flow.id), (user.id, other_flow.id)):
        with pytest.raises(NotFound) as error:
            await retry(session, user_id, flow_id, failed.id)
        assert (error.value.code, error.value.status) == ("execution_not_found", 404)


@pytest.mark.parametrize(
    ("flow_status", "status", "begin", "code"),
    [
        (FlowStatus.STOPPED, ExecutionStatus.ERROR, RetryFrom.START, "flow_not_running"),
        (FlowStatus.RUNNING, ExecutionStatus.RUNNING, RetryFrom.START, "execution_running"),
        (FlowStatus.RUNNING, ExecutionStatus.SUCCESS, RetryFrom.FAILED, "nothing_failed"),
    ],
)
async def test_retry_in_a_wrong_state_is_rejected_and_not_counted(
    session: AsyncSession,
    user: UserRecord,
    flow_status: FlowStatus,
    status: ExecutionStatus,
    begin: RetryFrom,
    code: str,
) -> None:
    flow = await create_flow(session, user, status=flow_status)
    original = await create_execution(session, flow, status=status)
    with pytest.raises(BadRequest) as error:
        await retry(session, user.id, flow.id, original.id, begin=begin)
    assert (error.value.code, error.value.status) == (code, 400)
    assert await session.scalar(sa.select(sa.func.count()).select_from(UsageRecord)) == 0


class TestLoops:
    async def test_finished_items_are_kept_although_their_loop_failed(
        self, session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
    ) -> None:
        entry = await create_step(session, failed, "entry", sequence=1)
        values: dict[str, Any] = {"error_code": "odd", "error_message": "why", "attempt": 2, "duration_ms": 7}
        loop = await create_step(
            session, failed, "loop", parent=entry, sequence=6, status=ERROR, completed_at=now(), **values
        )
        first = await create_step(session, failed, "loop", parent=loop, call="[0]", sequence=2, output_payload="1")
        await create_step(session, failed, "tool", parent=first, call="1.0", sequence=3)
        await create_step(session, failed, "loop", parent=loop, call="[1]", sequence=4, status=ERROR)
        await create_step(session, failed, "loop", parent=loop, call="[2]", sequence=5, status=CANCELLED)
        copies = await retried(session, flow, failed)
        assert [(copy.listener, copy.status, copy.copied) for copy in copies] == [
            ("entry", SUCCESS, True),
            ("loop", SUCCESS, True),
            ("tool", SUCCESS, True),
            ("loop", StepStatus.RUNNING, False),
        ]
        kept, continued = copies[1], copies[3]
        assert (kept.key, kept.parent_id) == (f"{continued.id}:loop:[0]", continued.id)
        assert continued.key == f"{copies[0].id}:loop"
        assert (continued.attempt, continued.error_code, continued.error_message) == (1, None, None)
        assert (continued.completed_at, continued.duration_ms) == (None, None)
        assert continued.started_at == loop.started_at, "now() is the same, so the list is too"

    async def test_loop_without_finished_items_is_repeated(
        self, session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
    ) -> None:
        loop = await create_step(session, failed, "loop", sequence=2, status=ERROR)
        await create_step(session, failed, "loop", parent=loop, call="[0]", sequence=1, status=ERROR)
        assert await retried(session, flow, failed) == []

    async def test_loop_whose_error_was_handled_is_copied_as_it_is(
        self, session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
    ) -> None:
        loop = await create_step(session, failed, "loop", sequence=3, status=ERROR)
        await create_step(session, failed, "loop", parent=loop, call="[0]", sequence=1)
        await create_step(session, failed, "loop", parent=loop, call="[1]", sequence=2, status=ERROR)
        await create_step(session, failed, "handler", parent=loop, sequence=4)
        copies = await retried(session, flow, failed)
        assert [copy.status for copy in copies] == [SUCCESS, ERROR, ERROR, SUCCESS]
        assert all(copy.copied for copy in copies)

    async def test_loop_below_a_step_that_is_repeated_is_repeated_too(
        self, session: AsyncSession, flow: FlowRecord, failed: ExecutionRecord
    ) -> None:
        agent = await create_step(session, failed, "agent", sequence=3, status=ERROR)
        loop = await create_step(session, failed, "loop", parent=agent, call="1.0", sequence=2, status=ERROR)
        await create_step(session, failed, "loop", parent=loop, call="[0]", sequence=1)
        assert await retried(session, flow, failed) == []
