"""The plans of statements that delete large flows."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.services.deletions import delete_flow
from tests.deleting import LARGE, add_executions


async def test_large_deletion_reads_only_running_executions(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    await add_executions(session, flow, LARGE)
    found: list[tuple[str, Any]] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "executions.lease IS NOT NULL" in statement:
            found.append((statement, parameters))

    event.listen(database_engine.sync_engine, "before_cursor_execute", record)
    try:
        await delete_flow(session, user.id, flow.id)
    finally:
        event.remove(database_engine.sync_engine, "before_cursor_execute", record)
    connection = await session.connection()
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql("ANALYZE")  # without statistics, the plan depends on earlier tests
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # the table is small
    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    assert len(found) == 2
    for statement, parameters in found:
        plan = "\n".join(str(row[-1]) for row in await connection.exec_driver_sql(f"{explain} {statement}", parameters))
        assert "ix_executions_claimed" in plan or re.search(r"mode.* AND .*status", plan), plan
