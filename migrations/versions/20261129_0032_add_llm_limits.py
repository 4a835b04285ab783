"""add the limits of calls of language models

Revision ID: 0032
Revises: 0031
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "llm_windows",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("active", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_llm_windows_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_llm_windows")),
    )
    op.create_table(
        "llm_reservations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_llm_reservations_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_llm_reservations")),
    )
    op.create_index(op.f("ix_llm_reservations_user_id"), "llm_reservations", ["user_id"])
    op.create_index(op.f("ix_llm_reservations_expires_at"), "llm_reservations", ["expires_at"])


def downgrade() -> None:
    op.drop_table("llm_reservations")
    op.drop_table("llm_windows")
