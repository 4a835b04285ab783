"""Reads heartbeats of workers from the database."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.tables import WorkerRecord
from bloxserver.models.types import database_now


async def database_time(database: Database) -> datetime:
    async with database.transaction(read_only=True) as session:
        return (await session.execute(sa.select(database_now()))).scalar_one()


async def workers_alive_since(database: Database, moment: datetime) -> set[str]:
    """Return the ids of workers that sent a heartbeat since `moment`."""
    async with database.transaction(read_only=True) as session:
        alive = sa.select(WorkerRecord.worker_id).where(WorkerRecord.last_heartbeat_at >= moment)
        return set(await session.scalars(alive))


async def longest_heartbeat_gap(database: Database) -> float:
    """Return the seconds since the oldest of the last heartbeats of all workers."""
    async with database.transaction(read_only=True) as session:
        row = await session.execute(sa.select(database_now(), sa.func.min(WorkerRecord.last_heartbeat_at)))
        moment, heartbeat = row.one()
    return 0.0 if heartbeat is None else (moment - heartbeat).total_seconds()
