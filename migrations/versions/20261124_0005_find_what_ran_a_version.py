"""find what ran a version

A version that goes asks for the executions that ran it: without an index, each time by reading all there are.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_executions_flow_version_id"), "executions", ["flow_version_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_executions_flow_version_id"), table_name="executions")
