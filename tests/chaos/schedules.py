"""Schedules on two replicas, one of which is killed. No firing is duplicated or missed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar
from uuid import UUID

import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, TriggerRecord, TriggerType
from tests.chaos.processes import Timing
from tests.chaos.report import Report
from tests.chaos.scenario import ScenarioRun, run_scenario
from tests.chaos.waiting import wait_until
from tests.chaos.workspace import Workspace

ONCE_A_YEAR = "0 0 1 1 *"
EVERY_MINUTE = "* * * * *"
MINUTE = timedelta(minutes=1)
FIRE_SECONDS = 90


async def schedules_made_due(workspace: Workspace, *, schedules: int, rounds: int, timing: Timing, seed: int) -> Report:
    """Make all schedules due at once, several times."""
    chance = random.Random(seed)
    report = Report(f"{schedules} schedules made due {rounds} times, {workspace.backend}, seed {seed}")
    async with run_scenario(workspace, timing) as run:
        await _start(run, schedules, ONCE_A_YEAR)
        counts = Counter(dict.fromkeys(await _triggers(run.database), 0))
        late: list[float] = []
        for _ in range(rounds):
            due_at = await _make_due(run.database)
            await _wait_until_fired(run.database, due_at, 1)  # kill a process while the others fire
            victim = chance.choice(run.installation.processes)
            await victim.kill()
            await victim.restart()
            await _wait_until_fired(run.database, due_at, schedules)
            fired = await _fired_since(run.database, due_at)
            counts.update(each.trigger_id for each in fired)
            late += [(each.at - due_at).total_seconds() for each in fired]
        _check_firings(report, counts, rounds, late)
        await run.check(report)
    return report


async def schedules_every_minute(
    workspace: Workspace, *, schedules: int, minutes: int, timing: Timing, seed: int
) -> Report:
    """Run schedules that fire every minute, and kill a replica around the start of each minute."""
    chance = random.Random(seed)
    report = Report(
        f"{schedules} schedules that fire every minute, {minutes} minutes, {workspace.backend}, seed {seed}"
    )
    async with run_scenario(workspace, timing) as run:
        await _start(run, schedules, EVERY_MINUTE)
        first = _minute(now()) + MINUTE
        minute_starts = [first + MINUTE * number for number in range(minutes)]
        for minute_start in minute_starts:
            kill_at = minute_start + timedelta(seconds=chance.uniform(-1, 2))
            await asyncio.sleep((kill_at - now()).total_seconds())
            victim = chance.choice(run.installation.processes)
            await victim.kill()
            await victim.restart()
        await _wait_until_fired(run.database, first, schedules * minutes)
        fired = [each for each in await _fired_since(run.database, first) if each.at < minute_starts[-1] + MINUTE]
        counts = Counter((each.trigger_id, _minute(each.at)) for each in fired)
        for trigger_id in await _triggers(run.database):
            for minute_start in minute_starts:
                counts[trigger_id, minute_start] += 0
        _check_firings(report, counts, 1, [(each.at - _minute(each.at)).total_seconds() for each in fired])
        await run.check(report)
    return report


async def _start(run: ScenarioRun, schedules: int, cron: str) -> None:
    for _ in range(1 if run.installation.uses_sqlite else 2):
        run.installation.add_replica(run_worker=True)
    await run.installation.start()
    await run.start_flow()
    for number in range(schedules):
        config = {"cron": cron, "payload": {"number": number}}
        body = {"type": "schedule", "name": f"schedule {number}", "config": config}
        await run.client.call("POST", f"{run.flow.path}/triggers", 201, json=body)
    armed = sa.select(sa.func.count()).where(TriggerRecord.next_fire_at.is_not(None))
    await wait_until("the schedules to be armed", lambda: _counts(run.database, armed, schedules), 30)


async def _make_due(database: Database) -> datetime:
    """Make all schedules due now; returns the time."""
    async with database.transaction() as session:
        moment = now()
        due = sa.update(TriggerRecord).where(TriggerRecord.type == TriggerType.SCHEDULE)
        await session.execute(due.values(next_fire_at=moment))
    return moment


class Fired(NamedTuple):
    trigger_id: UUID
    at: datetime


async def _fired_since(database: Database, moment: datetime) -> list[Fired]:
    execution = ExecutionRecord
    async with database.transaction(read_only=True) as session:
        rows = await session.execute(
            sa.select(TriggerRecord.id, execution.started_at)
            .join(TriggerRecord, TriggerRecord.id == execution.trigger_id)
            .where(execution.trigger_type == TriggerType.SCHEDULE, execution.started_at >= moment)
        )
        return [Fired(*row) for row in rows]


async def _wait_until_fired(database: Database, since: datetime, count: int) -> None:
    fired = sa.select(sa.func.count()).where(
        ExecutionRecord.trigger_type == TriggerType.SCHEDULE, ExecutionRecord.started_at >= since
    )
    await wait_until(f"{count} schedules to fire", lambda: _counts(database, fired, count), FIRE_SECONDS)


async def _counts(database: Database, statement: sa.Select[int], expected: int) -> bool:
    async with database.transaction(read_only=True) as session:
        return (await session.execute(statement)).scalar_one() >= expected


async def _triggers(database: Database) -> Sequence[UUID]:
    async with database.transaction(read_only=True) as session:
        ids = sa.select(TriggerRecord.id).where(TriggerRecord.type == TriggerType.SCHEDULE)
        return (await session.scalars(ids)).all()


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


Key = TypeVar("Key")


def _check_firings(report: Report, counts: Mapping[Key, int], expected: int, late: list[float]) -> None:
    report.expect_equal("firings", sum(counts.values()), expected * len(counts))
    report.expect_none("duplicate firings", [each for each, count in counts.items() if count > expected])
    report.expect_none("missed firings", [each for each, count in counts.items() if count < expected])
    report.record("longest lateness (s)", max(late, default=0.0))
