"""count executions

Triggers count the executions of each flow, in total and by the time of their start. Executions get a mode.

On PostgreSQL, the migration reads the executions twice and creates three indexes. Until it ends, other processes cannot
read or write executions, or write flows. With 1,000,000 executions of 10 flows in 333,000 minutes, it took 39 s on
PostgreSQL, on two cores that several other programs used fully. On SQLite it took 81 s (10 s of CPU time). Workers and
APIs of the previous version run on, and what they write is counted. They wait for the locks, and their lists sort the
executions of the flow, because the new indexes have the mode after the flow.

Revision ID: 0015
Revises: 0014
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from bloxserver.models import execution_totals, stored_bytes
from bloxserver.models.maintained import execute_statements
from bloxserver.models.migration_locks import lock_tables
from bloxserver.models.types import UtcDateTime

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

LOCKS = ("LOCK TABLE flows IN SHARE ROW EXCLUSIVE MODE", "LOCK TABLE executions IN ACCESS EXCLUSIVE MODE")
OLD_INDEXES = (["flow_id", "started_at", "id"], ["flow_id", "status", "started_at", "id"], ["trigger_id"])
NEW_INDEXES = (
    ["flow_id", "mode", "started_at", "id"],
    ["flow_id", "mode", "status", "started_at", "id"],
    ["trigger_id", "started_at", "id"],
)
COUNTERS = (
    "executions",
    "running",
    "success",
    "error",
    "timeout",
    "cancelled",
    "durations",
    "duration_ms",
    "input_tokens",
    "output_tokens",
)


def upgrade() -> None:
    connection = op.get_bind()
    lock_tables(connection, *LOCKS)
    op.add_column("executions", sa.Column("mode", sa.String(length=16), server_default="normal", nullable=False))
    _replace_indexes(OLD_INDEXES, NEW_INDEXES)
    _create_table("execution_totals", "mode", "slot")
    _create_table("execution_series", "mode", "seconds", "start", "slot")
    execute_statements(connection, execution_totals.count_anew)
    execute_statements(connection, execution_totals.create_triggers)
    execute_statements(connection, stored_bytes.functions)


def downgrade() -> None:
    connection = op.get_bind()
    lock_tables(connection, *LOCKS)
    execute_statements(connection, execution_totals.drop_triggers)
    op.drop_table("execution_series")
    op.drop_table("execution_totals")
    _replace_indexes(NEW_INDEXES, OLD_INDEXES)
    op.drop_column("executions", "mode")


def _create_table(name: str, *key: str) -> None:
    types: dict[str, Any] = {"mode": sa.String(length=16), "start": UtcDateTime()}
    op.create_table(
        name,
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        *(sa.Column(part, types.get(part, sa.Integer()), autoincrement=False, nullable=False) for part in key),
        *(sa.Column(counter, sa.BigInteger(), server_default="0", nullable=False) for counter in COUNTERS),
        sa.PrimaryKeyConstraint("flow_id", *key, name=op.f(f"pk_{name}")),
    )


def _replace_indexes(old: tuple[list[str], ...], new: tuple[list[str], ...]) -> None:
    for columns in old:
        op.drop_index(op.f(f"ix_executions_{'_'.join(columns)}"), table_name="executions")
    for columns in new:
        op.create_index(op.f(f"ix_executions_{'_'.join(columns)}"), "executions", columns, unique=False)
