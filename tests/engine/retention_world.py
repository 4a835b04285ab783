"""An installation with executions of different ages, for tests of retention."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import event

from bloxserver.clock import now
from bloxserver.engine.background.retention import Retention
from bloxserver.engine.background.retention_batches import PruneResult
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, FlowRecord, FlowVersionRecord, UserRecord
from bloxserver.settings import Settings
from tests.factories import create_execution, create_flow, create_trigger, create_user

SUCCESS = ExecutionStatus.SUCCESS
DAY = timedelta(days=1)


class World:
    """A user's flow on an installation whose settings the test chooses."""

    user: UserRecord
    flow: FlowRecord

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database

    async def arrange(self) -> None:
        async with self.database.sessions() as session:
            self.user = await create_user(session)
            self.flow = await create_flow(session, self.user)

    def retention(self, days: int = 0, per_flow: int = 0, versions: int = 0, **pauses: float) -> Retention:
        changes = {
            "execution_retention_days": days,
            "execution_retention_per_flow": per_flow,
            "flow_version_retention": versions,
        }
        return Retention(
            self.settings.model_copy(update=changes), self.database, **{"min_interval_seconds": 0.0, **pauses}
        )

    async def prune(self, days: int = 0, per_flow: int = 0, versions: int = 0) -> PruneResult:
        return await self.retention(days, per_flow, versions).prune()

    async def execution(self, days: float = 0, *, flow: FlowRecord | None = None, **values: Any) -> UUID:
        """Create an execution that started and ended this many days ago, unless `values` contains other times."""
        moment = now() - days * DAY
        defaults: dict[str, Any] = {"status": SUCCESS, "started_at": moment, "completed_at": moment}
        async with self.database.sessions() as session:
            return (await create_execution(session, flow or self.flow, **defaults | values)).id

    async def webhook(self) -> str:
        """The path of a webhook of another flow."""
        async with self.database.sessions() as session:
            trigger = await create_trigger(session, await create_flow(session, self.user))
        return f"/webhooks/{trigger.webhook_token}"

    async def add_versions(
        self, numbers: Iterable[int], *, flow: FlowRecord | None = None, **changes: Any
    ) -> list[UUID]:
        """Versions of a flow that was changed an hour ago, the last of them its latest."""
        flow_id = (flow or self.flow).id
        versions = [FlowVersionRecord(flow_id=flow_id, number=number, organism_yaml="x") for number in numbers]
        values = {"latest_version": versions[-1].number, "updated_at": now() - timedelta(hours=1)} | changes
        async with self.database.transaction() as session:
            session.add_all(versions)
            await session.execute(sa.update(FlowRecord).where(FlowRecord.id == flow_id).values(values))
        return [version.id for version in versions]

    async def versions(self) -> list[int]:
        async with self.database.transaction(read_only=True) as session:
            numbers = await session.scalars(sa.select(FlowVersionRecord.number).order_by(FlowVersionRecord.number))
            return list(numbers)

    async def add_steps(self, execution_id: UUID, number: int, size: int = 10) -> None:
        """Steps with answers of this many bytes, which the database cannot compress."""
        answers = (random.randbytes(size // 2).hex() for _ in range(number))  # noqa: S311
        rows = [
            {"execution_id": execution_id, "key": str(key), "listener": "a", "output_payload": answer}
            for key, answer in enumerate(answers)
        ]
        async with self.database.transaction() as session:
            for begin in range(0, number, 100):
                await session.execute(sa.insert(ExecutionStepRecord), rows[begin : begin + 100])

    async def count(self, table: type[Any]) -> int:
        async with self.database.transaction(read_only=True) as session:
            return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    async def left(self) -> set[UUID]:
        async with self.database.transaction(read_only=True) as session:
            return set(await session.scalars(sa.select(ExecutionRecord.id)))


async def until(holds: Callable[[], Awaitable[bool]], *, interval_seconds: float = 0.001) -> None:
    """Wait for a condition. The interval is longer for one that reads tables, which would delay what it waits for."""
    async with asyncio.timeout(30):
        while True:
            if await holds():
                return
            await asyncio.sleep(interval_seconds)


@contextmanager
def deleting_transactions(database: Database) -> Iterator[list[int]]:
    """The rows of flows that each transaction has deleted."""
    transactions: list[int] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith(("DELETE FROM execution", "DELETE FROM flow")):
            connection.info["deleted"] = connection.info.get("deleted", 0) + len(parameters)

    def end(connection: Any) -> None:
        if "deleted" in connection.info:
            transactions.append(connection.info.pop("deleted"))

    engine = database.engine.sync_engine
    event.listen(engine, "after_cursor_execute", note)
    event.listen(engine, "commit", end)
    try:
        yield transactions
    finally:
        event.remove(engine, "after_cursor_execute", note)
        event.remove(engine, "commit", end)
