"""let schedules fire

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.api.models.types import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("triggers", sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("triggers", sa.Column("next_fire_at", UtcDateTime(), nullable=True))
    op.add_column("triggers", sa.Column("last_fired_at", UtcDateTime(), nullable=True))
    op.create_index(
        "ix_triggers_schedules",
        "triggers",
        ["next_fire_at"],
        sqlite_where=sa.text("type = 'schedule'"),
        postgresql_where=sa.text("type = 'schedule'"),
    )


def downgrade() -> None:
    op.drop_index("ix_triggers_schedules", table_name="triggers")
    op.drop_column("triggers", "last_fired_at")
    op.drop_column("triggers", "next_fire_at")
    op.drop_column("triggers", "enabled")
