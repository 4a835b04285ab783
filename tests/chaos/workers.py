"""What the rows of workers say."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.tables import WorkerRecord
from bloxserver.models.types import database_now


async def database_time(database: Database) -> datetime:
    async with database.transaction(read_only=True) as session:
        return (await session.execute(sa.select(database_now()))).scalar_one()


async def beating_since(database: Database, moment: datetime) -> set[str]:
    """The workers that have said since then that they live."""
    async with database.transaction(read_only=True) as session:
        beating = sa.select(WorkerRecord.worker_id).where(WorkerRecord.last_heartbeat_at >= moment)
        return set(await session.scalars(beating))


async def longest_silence(database: Database) -> float:
    """Seconds since the worker that has been silent for longest last spoke."""
    async with database.transaction(read_only=True) as session:
        row = await session.execute(sa.select(database_now(), sa.func.min(WorkerRecord.last_heartbeat_at)))
        moment, beat = row.one()
    return 0.0 if beat is None else (moment - beat).total_seconds()
