"""count cpu time

An execution that waits, or that another worker continues, keeps the CPU time that it has used.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("executions", sa.Column("cpu_ms", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("executions", "cpu_ms")
