"""add the calls of language models

Revision ID: 0034
Revises: 0032
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0034"
down_revision = "0032"
branch_labels = None
depends_on = None

OF_EXECUTIONS = sa.text("execution_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "llm_calls",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=True),
        sa.Column("execution_id", sa.Uuid(), nullable=True),
        sa.Column("step_id", sa.Uuid(), nullable=True),
        sa.Column("provider", sa.String(40), nullable=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("cached", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("own_key", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("first_token_ms", sa.BigInteger(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error_code", sa.String(64), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_llm_calls_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_llm_calls")),
    )
    op.create_index(op.f("ix_llm_calls_user_id_created_at"), "llm_calls", ["user_id", "created_at"])
    op.create_index(op.f("ix_llm_calls_created_at"), "llm_calls", ["created_at"])
    op.create_index(
        "ix_llm_calls_execution_id",
        "llm_calls",
        ["execution_id"],
        sqlite_where=OF_EXECUTIONS,
        postgresql_where=OF_EXECUTIONS,
    )


def downgrade() -> None:
    op.drop_table("llm_calls")
