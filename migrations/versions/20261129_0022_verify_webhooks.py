"""add signing secrets and deliveries of webhooks, and the previous token of a webhook

Revision ID: 0022
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0022"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("triggers", sa.Column("previous_token", sa.String(255), nullable=True))
    op.add_column("triggers", sa.Column("previous_token_expires_at", UtcDateTime(), nullable=True))
    condition = sa.text("previous_token IS NOT NULL")
    op.create_index(
        "ix_triggers_previous_token",
        "triggers",
        ["previous_token"],
        unique=True,
        sqlite_where=condition,
        postgresql_where=condition,
    )
    op.create_table(
        "signing_secrets",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("trigger_id", sa.Uuid(), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("ciphertext", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trigger_id"], ["triggers.id"], name=op.f("fk_signing_secrets_trigger_id_triggers"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_secrets")),
    )
    op.create_index(op.f("ix_signing_secrets_trigger_id"), "signing_secrets", ["trigger_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("trigger_id", sa.Uuid(), nullable=False),
        sa.Column("received_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("message", sa.String(500), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("execution_id", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(
            ["trigger_id"], ["triggers.id"], name=op.f("fk_webhook_deliveries_trigger_id_triggers"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_trigger_id_id"), "webhook_deliveries", ["trigger_id", "id"])


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("signing_secrets")
    op.drop_index("ix_triggers_previous_token", "triggers")
    op.drop_column("triggers", "previous_token_expires_at")
    op.drop_column("triggers", "previous_token")
