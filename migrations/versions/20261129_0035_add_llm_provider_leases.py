"""add the leases of the slots of language model providers

Revision ID: 0035
Revises: 0034
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "llm_provider_leases",
        sa.Column("provider", sa.String(40), nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("slots", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("wanted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("provider", "holder", name=op.f("pk_llm_provider_leases")),
    )


def downgrade() -> None:
    op.drop_table("llm_provider_leases")
