"""Group commit: checkpoints that arrive together are written together, and fail alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.queue.checkpoints import (
    LARGE_STEPS,
    MAX_GROUP_CHARACTERS,
    MAX_GROUP_STEPS,
    Checkpoint,
    CheckpointWriter,
)
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.run.messages import Message, Step
from bloxserver.engine.run.serialization import JsonTextCache, step_row
from bloxserver.models.database import Database
from bloxserver.models.postgres import LOCK_SECONDS
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, ExecutionStepRecord, StepStatus, Tier
from tests.engine.queue_claims import claim
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements

NUMBER = 20


async def claimed_executions(database: Database) -> list[ClaimedExecution]:
    async with database.sessions() as session:
        flow = await create_flow(session, await create_user(session, tier=Tier.ENTERPRISE))
        for _ in range(NUMBER):
            await create_execution(session, flow)
    async with database.transaction() as session:
        return await claim(session)


def checkpoint(execution: ClaimedExecution, listener: str = "a", output: str | None = None) -> Checkpoint:
    step = Step(Message(listener, 1), "echo", StepStatus.SUCCESS, now(), completed_at=now(), output=1, sequence=1)
    return Checkpoint(execution, [step_row(step, execution.id, JsonTextCache(), known=False)], output)


def statements_of_group(database: Database) -> int:
    """Statements of a group without ends: SQLite reads the leases first."""
    return 2 if database.is_sqlite else 1


async def statuses(database: Database) -> dict[str, int]:
    async with database.sessions() as session:
        rows = await session.execute(
            sa.select(ExecutionRecord.status, sa.func.count()).group_by(ExecutionRecord.status)
        )
        return {status.value: number for status, number in rows}


async def count_steps(database: Database) -> int:
    async with database.sessions() as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(ExecutionStepRecord)) or 0


async def test_a_group_costs_as_many_statements_as_one_checkpoint(live_database: Database) -> None:
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    with count_statements(live_database.engine) as statements:
        await asyncio.gather(*(checkpoints.save(checkpoint(execution, output="1")) for execution in executions))
    assert len(statements) == (3 if live_database.is_sqlite else 1), "leases, steps, ends"
    assert await statuses(live_database) == {"success": NUMBER}
    assert await count_steps(live_database) == NUMBER


async def test_a_group_keeps_the_selected_listeners_of_each_step(live_database: Database) -> None:
    executions = await claimed_executions(live_database)
    routes: list[list[str] | None] = [["b"], None, ["b", "c"], []]
    saved = []
    for execution, routed_to in zip(executions, routes, strict=False):
        saved.append(checkpoint(execution))
        saved[-1].steps[0]["routed_to"] = routed_to
    checkpoints = CheckpointWriter(live_database)
    await asyncio.gather(*(checkpoints.save(each) for each in saved))
    async with live_database.sessions() as session:
        statement = sa.select(ExecutionStepRecord.execution_id, ExecutionStepRecord.routed_to)
        stored = {row.execution_id: row.routed_to for row in await session.execute(statement)}
    assert [stored[each.execution.id] for each in saved] == routes


async def test_a_lost_lease_affects_its_execution_alone(live_database: Database) -> None:
    executions = await claimed_executions(live_database)
    async with live_database.transaction() as session:
        await session.execute(
            sa.update(ExecutionRecord).where(ExecutionRecord.id == executions[0].id).values(lease=None)
        )
        await session.execute(
            sa.update(ExecutionRecord)
            .where(ExecutionRecord.id == executions[1].id)
            .values(status=ExecutionStatus.CANCELLED)
        )
    checkpoints = CheckpointWriter(live_database)
    saves = [checkpoints.save(checkpoint(execution, output="1")) for execution in executions]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [LeaseLost, LeaseLost]
    assert results[2:] == [None] * (NUMBER - 2)
    assert await statuses(live_database) == {"success": NUMBER - 2, "cancelled": 1, "running": 1}
    assert await count_steps(live_database) == NUMBER - 2


async def test_an_older_lease_of_the_same_worker_writes_nothing(live_database: Database) -> None:
    old = (await claimed_executions(live_database))[0]
    async with live_database.transaction() as session:
        await reclaim_all(session)
    async with live_database.transaction() as session:
        new = next(execution for execution in await claim(session) if execution.id == old.id)
    checkpoints = CheckpointWriter(live_database)
    claims = ((old, "old"), (new, "new"), (old, "older"))
    saves = [checkpoints.save(checkpoint(claimed, listener)) for claimed, listener in claims]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert [type(result) for result in results] == [LeaseLost, type(None), LeaseLost]
    async with live_database.sessions() as session:
        assert list(await session.scalars(sa.select(ExecutionStepRecord.listener))) == ["new"]


async def test_a_checkpoint_that_the_database_refuses_fails_alone(live_database: Database) -> None:
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    broken = checkpoint(executions[0])
    broken.steps[0]["listener"] = None
    saves = [checkpoints.save(broken), *(checkpoints.save(checkpoint(execution)) for execution in executions[1:])]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert isinstance(results[0], sa.exc.IntegrityError)
    assert results[1:] == [None] * (NUMBER - 1)
    assert await count_steps(live_database) == NUMBER - 1


@asynccontextmanager
async def locked(database: Database, execution_ids: Sequence[UUID]) -> AsyncIterator[None]:
    """Another transaction has locked these executions."""
    async with database.transaction() as session:
        rows = sa.select(ExecutionRecord.id).where(ExecutionRecord.id.in_(execution_ids)).with_for_update()
        assert len((await session.execute(rows)).all()) == len(execution_ids)
        yield


async def test_locked_execution_does_not_delay_others(live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    async with locked(live_database, [executions[0].id]):
        blocked = asyncio.create_task(checkpoints.save(checkpoint(executions[0], output="1")))
        async with asyncio.timeout(LOCK_SECONDS - 1):
            for number in (1, 2, 3):  # in later groups too, while the first one waits
                await checkpoints.save(checkpoint(executions[number], output="1"))
            await asyncio.gather(*(checkpoints.save(checkpoint(execution, output="1")) for execution in executions[4:]))
        assert not blocked.done()
    await blocked
    assert await statuses(live_database) == {"success": NUMBER}


async def test_many_locked_executions_leave_connections_for_others(live_database: Database) -> None:
    """More executions are locked than the pool has connections."""
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    async with locked(live_database, [execution.id for execution in executions[1:]]):
        blocked = [asyncio.create_task(checkpoints.save(checkpoint(execution))) for execution in executions[1:]]
        await asyncio.sleep(0)
        async with asyncio.timeout(LOCK_SECONDS - 1):
            await checkpoints.save(checkpoint(executions[0], "a"))
            await checkpoints.save(checkpoint(executions[0], "b"))
        assert not any(task.done() for task in blocked)
    await asyncio.gather(*blocked)
    assert await count_steps(live_database) == NUMBER + 1


async def test_locked_execution_whose_lease_is_lost_is_reported(live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    async with live_database.transaction() as session:
        await session.execute(
            sa.update(ExecutionRecord).where(ExecutionRecord.id == executions[0].id).values(lease=None)
        )
        blocked = asyncio.create_task(checkpoints.save(checkpoint(executions[0])))
        await checkpoints.save(checkpoint(executions[1]))
        assert not blocked.done()
    with pytest.raises(LeaseLost):
        await blocked
    assert await count_steps(live_database) == 1


async def test_execution_whose_row_was_changed_while_its_checkpoint_waited_ends(live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    async with live_database.transaction() as session:
        await session.execute(
            sa.update(ExecutionRecord).where(ExecutionRecord.id == executions[0].id).values(input_tokens=7)
        )
        blocked = asyncio.create_task(checkpoints.save(checkpoint(executions[0], output="1")))
        await checkpoints.save(checkpoint(executions[1], output="1"))
        assert not blocked.done()
    await blocked
    assert await statuses(live_database) == {"success": 2, "running": NUMBER - 2}
    assert await count_steps(live_database) == 2
    async with live_database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.sum(ExecutionRecord.input_tokens))) == 7


async def test_saving_again_changes_nothing(live_database: Database) -> None:
    """As after a commit whose answer was lost."""
    execution = (await claimed_executions(live_database))[0]
    checkpoints = CheckpointWriter(live_database)
    same = checkpoint(execution)
    await checkpoints.save(same)
    await checkpoints.save(same)
    assert await count_steps(live_database) == 1


async def test_a_cancelled_save_does_not_block_others(live_database: Database) -> None:
    executions = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    stopped = asyncio.create_task(checkpoints.save(checkpoint(executions[0])))
    await asyncio.sleep(0)
    stopped.cancel()
    await checkpoints.save(checkpoint(executions[1]))
    assert stopped.cancelled()
    assert await count_steps(live_database) in (1, 2)


async def test_large_checkpoints_of_a_user_share_no_group_with_others_and_have_a_limited_size(
    live_database: Database,
) -> None:
    many = await claimed_executions(live_database)
    other = await claimed_executions(live_database)
    checkpoints = CheckpointWriter(live_database)
    order: list[UUID] = []

    async def save(saved: Checkpoint) -> None:
        await checkpoints.save(saved)
        order.append(saved.execution.user_id)

    large = [checkpoint(execution) for execution in many[:6]]
    for each in large:
        each.steps[0]["output_payload"] = "x" * (MAX_GROUP_CHARACTERS // 2)
    with count_statements(live_database.engine) as statements:
        await asyncio.gather(*map(save, [*large, checkpoint(other[0])]))
    assert len(statements) == 4 * statements_of_group(live_database), "three groups of large ones and another"
    if live_database.engine.dialect.name == "sqlite":  # has one connection that writes
        assert order.index(other[0].user_id) < 3
    assert order.count(many[0].user_id) == 6


async def test_checkpoints_of_many_steps_share_no_group_with_others(live_database: Database) -> None:
    many = (await claimed_executions(live_database))[0]
    few = (await claimed_executions(live_database))[0]
    checkpoints = CheckpointWriter(live_database)
    steps = [checkpoint(many, f"l{number}").steps[0] for number in range(LARGE_STEPS)]
    with count_statements(live_database.engine) as statements:
        await asyncio.gather(checkpoints.save(Checkpoint(many, steps)), checkpoints.save(checkpoint(few)))
    assert len(statements) == 2 * statements_of_group(live_database)
    with count_statements(live_database.engine) as statements:
        await asyncio.gather(checkpoints.save(checkpoint(many, "last")), checkpoints.save(checkpoint(few, "last")))
    assert len(statements) == statements_of_group(live_database)


async def test_a_group_has_a_limited_number_of_steps(live_database: Database) -> None:
    executions = (await claimed_executions(live_database))[:3]
    checkpoints = CheckpointWriter(live_database)
    steps = MAX_GROUP_STEPS // 2
    saved = [
        Checkpoint(execution, [checkpoint(execution, f"l{number}").steps[0] for number in range(steps)])
        for execution in executions
    ]
    with count_statements(live_database.engine) as statements:
        await asyncio.gather(*map(checkpoints.save, saved))
    assert len(statements) == 2 * statements_of_group(live_database)
    assert await count_steps(live_database) == 3 * steps
