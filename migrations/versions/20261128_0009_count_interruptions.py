"""count interruptions

A step counts the tries that were interrupted. An execution remembers which lease its last recovery ended, so that a
worker that was alive takes the crash back.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("execution_steps", sa.Column("interruptions", sa.Integer(), server_default="0", nullable=False))
    op.add_column("executions", sa.Column("lost_lease", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("executions", "lost_lease")
    op.drop_column("execution_steps", "interruptions")
