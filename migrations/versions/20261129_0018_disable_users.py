"""add the time at which an operator disabled a user

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("disabled_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "disabled_at")
