"""Inserts executions and steps that a flow had before the attack."""

from __future__ import annotations

import sqlalchemy as sa

from benchmarks.installation import Installation

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
EXECUTIONS = """
INSERT INTO executions (id, flow_id, trigger_type, status, started_at, completed_at)
{numbers} SELECT {new_id}, flows.id, 'manual', 'success', flows.created_at, flows.created_at
FROM n, flows WHERE flows.name = 'attack'"""
STEPS = """
INSERT INTO execution_steps (id, execution_id, key, listener)
{numbers} SELECT {new_id}, executions.id, n.i, 'a' FROM n, executions WHERE executions.trigger_type = 'manual'"""


async def insert_history(installation: Installation, executions: int, steps: int) -> None:
    """Insert executions of the flow named `attack`, each with this number of steps."""
    new_id = "lower(hex(randomblob(16)))" if installation.is_sqlite else "gen_random_uuid()"
    async with installation.database.transaction() as session:
        for statement, count in ((EXECUTIONS, executions), (STEPS, steps)):
            if count:
                text = statement.format(numbers=NUMBERS, new_id=new_id)
                await session.execute(sa.text(text), {"count": count})
