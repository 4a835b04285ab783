"""delete in batches

A flow or a trigger with many executions is marked as deleted, and a background task deletes its rows. Processes of an
older version would show such flows and run their executions: stop them before this migration.

A downgrade finishes the pending deletions first, in one transaction.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = ("flows", "triggers")
FLOWS = "SELECT id FROM flows WHERE deleted_at IS NOT NULL"
TRIGGERS = f"SELECT id FROM triggers WHERE deleted_at IS NOT NULL OR flow_id IN ({FLOWS})"  # noqa: S608
EXECUTIONS = f"SELECT id FROM executions WHERE flow_id IN ({FLOWS})"  # noqa: S608
PENDING = (
    f"DELETE FROM execution_steps WHERE execution_id IN ({EXECUTIONS})",  # noqa: S608
    f"DELETE FROM failure_notifications WHERE execution_id IN ({EXECUTIONS})",  # noqa: S608
    f"DELETE FROM failure_notifications WHERE trigger_id IN ({TRIGGERS})",  # noqa: S608
    f"DELETE FROM executions WHERE flow_id IN ({FLOWS})",  # noqa: S608
    f"UPDATE executions SET trigger_id = NULL WHERE trigger_id IN ({TRIGGERS})",  # noqa: S608
    f"DELETE FROM triggers WHERE deleted_at IS NOT NULL OR flow_id IN ({FLOWS})",  # noqa: S608
    f"DELETE FROM key_values WHERE flow_id IN ({FLOWS})",  # noqa: S608
    f"DELETE FROM flow_versions WHERE flow_id IN ({FLOWS})",  # noqa: S608
    "DELETE FROM flows WHERE deleted_at IS NOT NULL",
)


def upgrade() -> None:
    condition = sa.text("deleted_at IS NOT NULL")
    for table in TABLES:
        op.add_column(table, sa.Column("deleted_at", UtcDateTime(), nullable=True))
        op.create_index(
            f"ix_{table}_deleted", table, ["deleted_at"], sqlite_where=condition, postgresql_where=condition
        )


def downgrade() -> None:
    for statement in PENDING:
        op.execute(statement)
    for table in TABLES:
        op.drop_index(f"ix_{table}_deleted", table_name=table)
        op.drop_column(table, "deleted_at")
