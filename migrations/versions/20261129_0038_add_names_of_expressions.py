"""add the values that expressions can refer to: variables of flows, and facts of triggers

Revision ID: 0038
Revises: 0036
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0038"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "flow_vars",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("replaced_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["flow_id"], ["flows.id"], name="fk_flow_vars_flow_id_flows", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_flow_vars"),
    )
    op.create_index("ix_flow_vars_flow_id", "flow_vars", ["flow_id"])
    op.add_column("flows", sa.Column("vars_id", sa.Uuid(), nullable=True))
    op.add_column("executions", sa.Column("vars_id", sa.Uuid(), nullable=True))
    op.add_column("executions", sa.Column("trigger_context", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("executions", "trigger_context")
    op.drop_column("executions", "vars_id")
    op.drop_column("flows", "vars_id")
    op.drop_index("ix_flow_vars_flow_id", "flow_vars")
    op.drop_table("flow_vars")
