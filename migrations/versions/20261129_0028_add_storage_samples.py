"""add daily samples of stored bytes

Revision ID: 0028
Revises: 0027
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "storage_samples",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("period_start", UtcDateTime(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("billed_megabytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "day", name=op.f("pk_storage_samples")),
    )
    op.create_index(op.f("ix_storage_samples_day"), "storage_samples", ["day"])


def downgrade() -> None:
    op.drop_table("storage_samples")
