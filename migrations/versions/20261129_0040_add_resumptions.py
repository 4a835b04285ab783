"""add the calls that resume executions

Revision ID: 0040
Revises: 0039
"""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

INDEX = "ix_executions_retries"


def upgrade() -> None:
    op.create_table(
        "resumptions",
        sa.Column("execution_id", sa.Uuid(), nullable=False),
        sa.Column("listener", sa.String(255), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("answered_by", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["executions.id"], name="fk_resumptions_execution_id_executions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("execution_id", "listener", name="pk_resumptions"),
    )
    condition = sa.text("retry_of IS NOT NULL")
    op.create_index(INDEX, "executions", ["retry_of"], sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    op.drop_index(INDEX, "executions")
    op.drop_table("resumptions")
