"""Checkpoints that come together are written together, and fail alone."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.queue.checkpoints import Checkpoint, CheckpointWriter
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.recovery import reclaim_all
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.run.messages import Message, Step
from bloxserver.engine.run.serialization import JsonTextCache, step_row
from bloxserver.models.database import Database
from bloxserver.models.postgres import Waits
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, ExecutionStepRecord, StepStatus, Tier
from bloxserver.settings import Settings
from tests.engine.taking import claim
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements

NUMBER = 20


async def taken(database: Database) -> list[ClaimedExecution]:
    async with database.sessions() as session:
        flow = await create_flow(session, await create_user(session, tier=Tier.ENTERPRISE))
        for _ in range(NUMBER):
            await create_execution(session, flow)
    async with database.transaction() as session:
        return await claim(session)


def checkpoint(execution: ClaimedExecution, listener: str = "a", output: str | None = None) -> Checkpoint:
    step = Step(Message(listener, 1), "echo", StepStatus.SUCCESS, now(), completed_at=now(), output=1, sequence=1)
    return Checkpoint(execution, [step_row(step, execution.id, JsonTextCache(), known=False)], output)


async def statuses(database: Database) -> dict[str, int]:
    async with database.sessions() as session:
        rows = await session.execute(
            sa.select(ExecutionRecord.status, sa.func.count()).group_by(ExecutionRecord.status)
        )
        return {status.value: number for status, number in rows}


async def count_steps(database: Database) -> int:
    async with database.sessions() as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(ExecutionStepRecord)) or 0


async def test_what_comes_together_costs_what_one_costs(live_database: Database) -> None:
    executions = await taken(live_database)
    checkpoints = CheckpointWriter(live_database)
    with count_statements(live_database.engine) as statements:
        await asyncio.gather(*(checkpoints.save(checkpoint(execution, output="1")) for execution in executions))
    assert len(statements) == 3, "hold, steps, ends"
    assert await statuses(live_database) == {"success": NUMBER}
    assert await count_steps(live_database) == NUMBER


async def test_a_lost_lease_is_told_to_its_execution_alone(live_database: Database) -> None:
    executions = await taken(live_database)
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


async def test_an_older_hold_of_the_same_worker_writes_nothing(live_database: Database) -> None:
    old = (await taken(live_database))[0]
    async with live_database.transaction() as session:
        await reclaim_all(session)
    async with live_database.transaction() as session:
        new = next(execution for execution in await claim(session) if execution.id == old.id)
    checkpoints = CheckpointWriter(live_database)
    holds = ((old, "old"), (new, "new"), (old, "older"))
    saves = [checkpoints.save(checkpoint(held, listener)) for held, listener in holds]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert [type(result) for result in results] == [LeaseLost, type(None), LeaseLost]
    async with live_database.sessions() as session:
        assert list(await session.scalars(sa.select(ExecutionStepRecord.listener))) == ["new"]


async def test_one_that_the_database_refuses_keeps_no_other_from_being_kept(live_database: Database) -> None:
    executions = await taken(live_database)
    checkpoints = CheckpointWriter(live_database)
    broken = checkpoint(executions[0])
    broken.steps[0]["listener"] = None
    saves = [checkpoints.save(broken), *(checkpoints.save(checkpoint(execution)) for execution in executions[1:])]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert isinstance(results[0], sa.exc.IntegrityError)
    assert results[1:] == [None] * (NUMBER - 1)
    assert await count_steps(live_database) == NUMBER - 1


async def test_a_locked_row_does_not_block_the_others(live_settings: Settings, live_database: Database) -> None:
    if live_database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    executions = await taken(live_database)
    quick = Database(live_settings, Waits(lock=0.2))
    checkpoints = CheckpointWriter(quick)
    async with live_database.transaction() as holder:
        held = sa.select(ExecutionRecord.id).where(ExecutionRecord.id == executions[0].id)
        await holder.execute(held.with_for_update())
        blocked = asyncio.create_task(checkpoints.save(checkpoint(executions[0], output="1")))
        async with asyncio.timeout(15):
            await asyncio.gather(*(checkpoints.save(checkpoint(execution, output="1")) for execution in executions[1:]))
        assert not blocked.done()
    await blocked
    await quick.dispose()
    assert await statuses(live_database) == {"success": NUMBER}


async def test_saving_again_changes_nothing(live_database: Database) -> None:
    """A commit whose answer was lost is made again."""
    execution = (await taken(live_database))[0]
    checkpoints = CheckpointWriter(live_database)
    same = checkpoint(execution)
    await checkpoints.save(same)
    await checkpoints.save(same)
    assert await count_steps(live_database) == 1


async def test_whoever_was_stopped_meanwhile_is_no_obstacle(live_database: Database) -> None:
    executions = await taken(live_database)
    checkpoints = CheckpointWriter(live_database)
    stopped = asyncio.create_task(checkpoints.save(checkpoint(executions[0])))
    await asyncio.sleep(0)
    stopped.cancel()
    await checkpoints.save(checkpoint(executions[1]))
    assert stopped.cancelled()
    assert await count_steps(live_database) in (1, 2)
