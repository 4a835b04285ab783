"""Schedules on two replicas, one of which is killed: nothing fires twice, nothing is left out."""

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
from tests.chaos.place import Place
from tests.chaos.processes import Timing
from tests.chaos.report import Report
from tests.chaos.stage import Stage, stage
from tests.chaos.waiting import until

ONCE_A_YEAR = "0 0 1 1 *"
EVERY_MINUTE = "* * * * *"
MINUTE = timedelta(minutes=1)
FIRE_SECONDS = 90


async def schedules_made_due(place: Place, *, schedules: int, rounds: int, timing: Timing, seed: int) -> Report:
    """Schedules that are far from due are made due, all at once, again and again."""
    chance = random.Random(seed)
    report = Report(f"{schedules} schedules made due {rounds} times, {place.backend}, seed {seed}")
    async with stage(place, timing) as scene:
        await _start(scene, schedules, ONCE_A_YEAR)
        counts = Counter(dict.fromkeys(await _triggers(scene.database), 0))
        late: list[float] = []
        for _ in range(rounds):
            due_at = await _make_due(scene.database)
            await _until_fired(scene.database, due_at, 1)  # in the middle of it
            victim = chance.choice(scene.installation.processes)
            await victim.kill()
            await victim.restart()
            await _until_fired(scene.database, due_at, schedules)
            fired = await _fired_since(scene.database, due_at)
            counts.update(each.trigger_id for each in fired)
            late += [(each.at - due_at).total_seconds() for each in fired]
        _judge(report, counts, rounds, late)
        await scene.judge(report)
    return report


async def schedules_by_the_clock(place: Place, *, schedules: int, minutes: int, timing: Timing, seed: int) -> Report:
    """Schedules of every minute, through so many full minutes; a replica is killed about the turn of each."""
    chance = random.Random(seed)
    report = Report(f"{schedules} schedules of every minute, {minutes} minutes, {place.backend}, seed {seed}")
    async with stage(place, timing) as scene:
        await _start(scene, schedules, EVERY_MINUTE)
        first = _minute(now()) + MINUTE
        turns = [first + MINUTE * number for number in range(minutes)]
        for turn in turns:
            kill_at = turn + timedelta(seconds=chance.uniform(-1, 2))
            await asyncio.sleep((kill_at - now()).total_seconds())
            victim = chance.choice(scene.installation.processes)
            await victim.kill()
            await victim.restart()
        await _until_fired(scene.database, first, schedules * minutes)
        fired = [each for each in await _fired_since(scene.database, first) if each.at < turns[-1] + MINUTE]
        counts = Counter((each.trigger_id, _minute(each.at)) for each in fired)
        for trigger_id in await _triggers(scene.database):
            for turn in turns:
                counts[trigger_id, turn] += 0
        _judge(report, counts, 1, [(each.at - _minute(each.at)).total_seconds() for each in fired])
        await scene.judge(report)
    return report


async def _start(scene: Stage, schedules: int, cron: str) -> None:
    for _ in range(1 if scene.installation.uses_sqlite else 2):
        scene.installation.add_replica(run_worker=True)
    await scene.installation.start()
    await scene.start_flow()
    for number in range(schedules):
        config = {"cron": cron, "payload": {"number": number}}
        body = {"type": "schedule", "name": f"schedule {number}", "config": config}
        await scene.client.call("POST", f"{scene.flow.path}/triggers", 201, json=body)
    armed = sa.select(sa.func.count()).where(TriggerRecord.next_fire_at.is_not(None))
    await until("the schedules to be armed", lambda: _counts(scene.database, armed, schedules), 30)


async def _make_due(database: Database) -> datetime:
    """Returns since when they are due."""
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


async def _until_fired(database: Database, since: datetime, count: int) -> None:
    fired = sa.select(sa.func.count()).where(
        ExecutionRecord.trigger_type == TriggerType.SCHEDULE, ExecutionRecord.started_at >= since
    )
    await until(f"{count} schedules to fire", lambda: _counts(database, fired, count), FIRE_SECONDS)


async def _counts(database: Database, statement: sa.Select[int], wanted: int) -> bool:
    async with database.transaction(read_only=True) as session:
        return (await session.execute(statement)).scalar_one() >= wanted


async def _triggers(database: Database) -> Sequence[UUID]:
    async with database.transaction(read_only=True) as session:
        ids = sa.select(TriggerRecord.id).where(TriggerRecord.type == TriggerType.SCHEDULE)
        return (await session.scalars(ids)).all()


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


Key = TypeVar("Key")


def _judge(report: Report, counts: Mapping[Key, int], wanted: int, late: list[float]) -> None:
    report.equal("firings", sum(counts.values()), wanted * len(counts))
    report.none("duplicate firings", [each for each, count in counts.items() if count > wanted])
    report.none("missed firings", [each for each, count in counts.items() if count < wanted])
    report.figure("longest lateness (s)", max(late, default=0.0))
