"""add what billing stores of users

Revision ID: 0025
Revises: 0023
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime

revision = "0025"
down_revision = "0023"
branch_labels = None
depends_on = None

TIMES = ("stripe_synced_at", "trial_used_at", "cancel_at", "grace_ends_at")


def upgrade() -> None:
    op.add_column("users", sa.Column("stripe_status", sa.String(32), nullable=True))
    op.add_column("users", sa.Column("tier_source", sa.String(32), nullable=True))
    for name in TIMES:
        op.add_column("users", sa.Column(name, UtcDateTime(), nullable=True))


def downgrade() -> None:
    for name in reversed(TIMES):
        op.drop_column("users", name)
    op.drop_column("users", "tier_source")
    op.drop_column("users", "stripe_status")
