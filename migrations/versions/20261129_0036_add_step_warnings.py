"""add the warnings of steps, and notifications of them

Revision ID: 0036
Revises: 0035
"""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

OF_FLOWS = sa.text("flow_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("execution_steps", sa.Column("warnings", sa.JSON(), nullable=True))
    op.add_column("failure_notifications", sa.Column("flow_id", sa.Uuid(), nullable=True))
    op.add_column("failure_notifications", sa.Column("subject", sa.String(80), nullable=True))
    op.create_index(
        "ix_failure_notifications_flow",
        "failure_notifications",
        ["flow_id", "subject", "channel"],
        unique=True,
        sqlite_where=OF_FLOWS,
        postgresql_where=OF_FLOWS,
    )


def downgrade() -> None:
    op.execute("DELETE FROM failure_notifications WHERE flow_id IS NOT NULL")
    op.drop_index("ix_failure_notifications_flow", "failure_notifications")
    op.drop_column("failure_notifications", "subject")
    op.drop_column("failure_notifications", "flow_id")
    op.drop_column("execution_steps", "warnings")
