"""Calls between flows: accepted, refused and repeated calls."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.clock import now
from bloxserver.engine.queue.claims import read_call_results
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.flow_calls import CallingExecution, FlowCalls
from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus, InputEncoding
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    Tier,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from bloxserver.plans import FREE
from bloxserver.queries.usage import period_at
from bloxserver.services.transitions import cancel_executions
from tests.factories import create_execution, create_flow, create_user


class World:
    """A user whose flow runs an execution, and another flow of the same user."""

    user: UserRecord
    flow: FlowRecord
    other: FlowRecord
    caller: ExecutionRecord

    def __init__(self, database: Database) -> None:
        self.database = database

    async def arrange(self, *, tier: Tier = Tier.FREE, depth: int = 0, **other: Any) -> None:
        async with self.database.sessions() as session:
            self.user = await create_user(session, tier=tier)
            self.flow = await create_flow(session, self.user, name="Caller")
            self.other = await create_flow(session, self.user, **{"name": "Other", **other})
            self.caller = await create_execution(session, self.flow, depth=depth)

    async def add_flow(self, user: UserRecord | None = None, **values: Any) -> FlowRecord:
        async with self.database.sessions() as session:
            return await create_flow(session, user or self.user, **values)

    async def call(
        self, flow: str = "Other", payload: JsonValue = None, target: str | None = None, *, key: str = "s:1"
    ) -> UUID:
        caller = self.caller
        calls = FlowCalls(self.database, CallingExecution(caller.id, self.user.id, caller.depth, key, caller.lease))
        return await calls.call(flow, payload, target)

    async def refused(self, flow: str = "Other") -> BlockError:
        """The error of a call that leaves nothing behind."""
        before = await self.runs()
        with pytest.raises(BlockError) as caught:
            await self.call(flow)
        assert (await self.called(), await self.runs()) == ([], before)
        return caught.value

    async def called(self) -> list[ExecutionRecord]:
        async with self.database.sessions() as session:
            rows = await session.scalars(sa.select(ExecutionRecord).where(ExecutionRecord.id != self.caller.id))
            return list(rows)

    async def runs(self) -> int:
        async with self.database.sessions() as session:
            return await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) or 0


@pytest.fixture
def world(live_database: Database) -> World:
    return World(live_database)


async def test_a_call_is_an_execution_with_a_parent(world: World) -> None:
    await world.arrange(depth=3)
    async with world.database.sessions() as session:
        version = FlowVersionRecord(flow_id=world.other.id, number=7, organism_yaml="x")
        session.add(version)
        await session.flush()
        flow = await session.get_one(FlowRecord, world.other.id)
        flow.active_version_id, flow.active_version = version.id, 7
        await session.commit()
    called_id = await world.call("Other", {"order": 1}, "second", key="step:2")
    [execution] = await world.called()
    assert (execution.id, execution.flow_id) == (called_id, world.other.id)
    assert (execution.flow_version_id, execution.flow_version) == (version.id, 7)
    assert (execution.parent_id, execution.parent_key, execution.depth) == (world.caller.id, "step:2", 4)
    assert (execution.trigger_type, execution.trigger_id) == (TriggerType.MANUAL, None)
    assert (execution.target, execution.input_payload) == ("second", '{"order": 1}')
    assert execution.status is ExecutionStatus.RUNNING
    assert (execution.lease, execution.resume_at) == (None, None)
    assert await world.runs() == 1


async def test_flow_can_be_called_by_id(world: World) -> None:
    await world.arrange()
    twin = await world.add_flow(name="Other")
    await world.call(str(twin.id))
    assert [execution.flow_id for execution in await world.called()] == [twin.id]


async def test_a_flow_may_call_itself(world: World) -> None:
    await world.arrange()
    await world.call("Caller")
    assert [execution.flow_id for execution in await world.called()] == [world.flow.id]


@pytest.mark.parametrize(
    "payload",
    [None, "", "text", "5", 5, 1.5, True, [], {"a": [None]}, "ünï", "\0", "\ud800", {"\udfff": "\0"}],
    ids=ascii,
)
async def test_called_execution_receives_the_payload(world: World, payload: JsonValue) -> None:
    await world.arrange()
    await world.call(payload=payload)
    [execution] = await world.called()
    assert json.loads(execution.input_payload or "") == payload
    assert execution.input_encoding is InputEncoding.TEXT


async def test_unstorable_target_is_accepted_and_names_no_listener(world: World) -> None:
    await world.arrange()
    await world.call(target="\0\ud800" + "x" * 1000)
    assert [execution.target for execution in await world.called()] == ["\ufffd?" + "x" * 253]


class TestRefusals:
    @pytest.mark.parametrize(
        "flow",
        ["other", "", "Strange", "\0", "\ud800", "x" * 101, "Ö" * 100_000, "01a20e03-7350-7292-92b3-0e53160ad3d0"],
    )
    async def test_unknown_flow_is_refused(self, world: World, flow: str) -> None:
        await world.arrange()
        async with world.database.sessions() as session:
            stranger = await create_user(session)
        strange = await world.add_flow(stranger, name="Strange")
        for name in (flow, str(strange.id)):
            error = await world.refused(name)
            assert (error.code, error.retryable) == ("flow_not_found", False)
            assert error.message == "You have no flow with this id or name"

    async def test_ambiguous_name_is_refused(self, world: World) -> None:
        await world.arrange()
        await world.add_flow(name="Other", status=FlowStatus.STOPPED)
        error = await world.refused()
        assert (error.code, error.retryable) == ("flow_ambiguous", False)

    @pytest.mark.parametrize("status", [status for status in FlowStatus if status is not FlowStatus.RUNNING])
    async def test_stopped_flow_is_a_retryable_error(self, world: World, status: FlowStatus) -> None:
        await world.arrange(status=status)
        error = await world.refused()
        assert (error.code, error.retryable) == ("flow_not_running", True)
        assert error.message == f"The called flow is not running (status: {status.value})"

    async def test_call_depth_over_eight_is_refused(self, world: World) -> None:
        await world.arrange(depth=8)
        error = await world.refused()
        assert (error.code, error.retryable) == ("call_depth_exceeded", False)
        assert error.message == "Flows call each other more than 8 deep"

    async def test_call_depth_of_eight_is_accepted(self, world: World) -> None:
        await world.arrange(depth=7)
        await world.call()
        assert [execution.depth for execution in await world.called()] == [8]

    async def test_call_at_the_run_limit_is_refused(self, world: World) -> None:
        await world.arrange()
        async with world.database.transaction() as session:
            period = period_at(now(), None, None)
            session.add(UsageRecord(user_id=world.user.id, period_start=period.start, workflow_runs=FREE.runs))
        error = await world.refused()
        assert (error.code, error.retryable) == ("run_limit_reached", False)

    @pytest.mark.parametrize("status", [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING])
    async def test_ended_caller_is_refused(self, world: World, status: ExecutionStatus) -> None:
        await world.arrange()
        async with world.database.transaction() as session:
            await session.execute(sa.update(ExecutionRecord).values(status=status))
        error = await world.refused()
        assert (error.code, error.retryable) == ("execution_ended", False)

    async def test_deleted_caller_is_refused(self, world: World) -> None:
        await world.arrange()
        async with world.database.transaction() as session:
            await session.execute(sa.delete(ExecutionRecord))
        assert (await world.refused()).code == "execution_ended"

    async def test_caller_that_is_being_cancelled_is_refused(self, world: World) -> None:
        """Otherwise the callee would run without a waiting caller."""
        await world.arrange()
        async with world.database.transaction() as session:
            await cancel_executions(session, [world.caller.id], "enough")
            call = asyncio.create_task(world.refused())
            done, _ = await asyncio.wait([call], timeout=0.2)
            assert not done
        assert (await call).code == "execution_ended"


class TestRepetition:
    @pytest.mark.parametrize("tier", [Tier.FREE, Tier.PRO])
    async def test_concurrent_repeated_calls_start_one_execution(self, world: World, tier: Tier) -> None:
        await world.arrange(tier=tier)
        ids = await asyncio.gather(*(world.call(payload=number) for number in range(50)))
        assert len(set(ids)) == 1
        assert [execution.id for execution in await world.called()] == [ids[0]]
        assert await world.runs() == 1

    async def test_different_keys_and_callers_start_different_executions(self, world: World) -> None:
        await world.arrange()
        first = await asyncio.gather(*(world.call(key=f"s:{attempt}") for attempt in range(1, 6)))
        async with world.database.sessions() as session:
            world.caller = await create_execution(session, world.flow)
        assert len({*first, await world.call(key="s:1")}) == 6
        assert await world.runs() == 6

    async def test_repeated_call_finds_the_execution_after_the_flow_changed(self, world: World) -> None:
        await world.arrange()
        first = await world.call()
        async with world.database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED, name="Renamed"))
        assert await world.call() == first
        assert await world.runs() == 1


async def test_results_contain_only_executions_of_the_caller(world: World) -> None:
    await world.arrange()
    running, done, failed = [await world.call(key=f"s:{number}") for number in range(3)]
    async with world.database.sessions() as session:
        other = await create_execution(session, world.flow)
        await create_execution(session, world.other, parent_id=other.id, parent_key="s:0")
        for called, status, output, error in (
            (done, ExecutionStatus.SUCCESS, '{"a": 1}', None),
            (failed, ExecutionStatus.ERROR, None, "broken"),
        ):
            await session.execute(
                sa.update(ExecutionRecord)
                .where(ExecutionRecord.id == called)
                .values(status=status, output_payload=output, error_message=error)
            )
        await session.commit()
        of = world.caller.id
        assert await read_call_results(session, [running, done, failed, new_id()]) == {
            (of, running): CalledResult(ExecutionStatus.RUNNING, None, None),
            (of, done): CalledResult(ExecutionStatus.SUCCESS, '{"a": 1}', None),
            (of, failed): CalledResult(ExecutionStatus.ERROR, None, "broken"),
        }
        assert list(await read_call_results(session, [failed])) == [(of, failed)]


async def test_worker_without_the_lease_calls_nothing(world: World) -> None:
    """It was frozen in the step, and the worker that recovered the execution may have made other calls."""
    await world.arrange()
    async with world.database.transaction() as session:
        await session.execute(
            sa.update(ExecutionRecord).where(ExecutionRecord.id == world.caller.id).values(lease=uuid4(), worker_id="w")
        )
    assert (await world.refused()).code == "execution_ended"
