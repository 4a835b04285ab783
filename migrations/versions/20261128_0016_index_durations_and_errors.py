"""index durations and errors

Statistics and lists find executions with a duration or an error among many others. On PostgreSQL, other processes can
read executions meanwhile. Writes wait.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_executions_durations": (["flow_id", "mode", "started_at", "duration_ms"], sa.text("duration_ms IS NOT NULL")),
    "ix_executions_failed": (["flow_id", "mode", "started_at", "id"], sa.text("error_message IS NOT NULL")),
}


def upgrade() -> None:
    for name, (columns, condition) in INDEXES.items():
        op.create_index(name, "executions", columns, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, table_name="executions")
