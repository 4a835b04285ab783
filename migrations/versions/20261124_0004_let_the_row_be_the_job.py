"""let the row be the job

What was handed to the job queue of the version before waits for a worker again; finished steps are kept.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.api.models.types import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WAITING = sa.text("status = 'running' AND lease IS NULL")
TAKEN = sa.text("status = 'running' AND lease IS NOT NULL")
RUNNING = sa.text("status = 'running'")


def upgrade() -> None:
    op.drop_index("ix_executions_live", table_name="executions", sqlite_where=RUNNING, postgresql_where=RUNNING)
    op.execute("UPDATE executions SET lease = NULL WHERE lease IS NOT NULL")
    op.drop_column("executions", "dispatched_at")
    op.drop_column("executions", "dispatch_number")
    op.add_column("executions", sa.Column("worker_id", sa.String(length=64), nullable=True))
    op.add_column("executions", sa.Column("takeovers", sa.Integer(), server_default="0", nullable=False))
    op.add_column("executions", sa.Column("trace_parent", sa.String(length=55), nullable=True))
    op.create_index(
        "ix_executions_waiting",
        "executions",
        ["flow_id", "resume_at", "started_at", "id"],
        unique=False,
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    )
    op.create_index(
        "ix_executions_taken",
        "executions",
        ["worker_id", "flow_id"],
        unique=False,
        sqlite_where=TAKEN,
        postgresql_where=TAKEN,
    )
    op.add_column("workers", sa.Column("version", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "version")
    op.drop_index("ix_executions_taken", table_name="executions", sqlite_where=TAKEN, postgresql_where=TAKEN)
    op.drop_index("ix_executions_waiting", table_name="executions", sqlite_where=WAITING, postgresql_where=WAITING)
    op.execute("UPDATE executions SET lease = NULL WHERE lease IS NOT NULL")
    op.drop_column("executions", "trace_parent")
    op.drop_column("executions", "takeovers")
    op.drop_column("executions", "worker_id")
    op.add_column("executions", sa.Column("dispatch_number", sa.Integer(), server_default="0", nullable=False))
    op.add_column("executions", sa.Column("dispatched_at", UtcDateTime(), nullable=True))
    op.create_index(
        "ix_executions_live",
        "executions",
        ["flow_id", "dispatched_at", "started_at"],
        unique=False,
        sqlite_where=RUNNING,
        postgresql_where=RUNNING,
    )
