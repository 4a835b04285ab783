"""add what is reported to the meters of Stripe

Revision ID: 0027
Revises: 0026
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

UNSENT = sa.text("sent_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "billing_periods",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("period_start", UtcDateTime(), nullable=False),
        sa.Column("period_end", UtcDateTime(), nullable=False),
        sa.Column("customer_id", sa.String(255), nullable=False),
        sa.Column("is_billed", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("reconciled_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "period_start", name=op.f("pk_billing_periods")),
    )
    op.create_index(op.f("ix_billing_periods_period_end"), "billing_periods", ["period_end"])
    op.create_table(
        "meter_reports",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("period_start", UtcDateTime(), nullable=False),
        sa.Column("customer_id", sa.String(255), nullable=False),
        sa.Column("event_name", sa.String(100), nullable=False),
        sa.Column("identifier", sa.String(255), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("uncertain_since", UtcDateTime(), nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.String(255), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_meter_reports")),
        sa.UniqueConstraint("identifier", name=op.f("uq_meter_reports_identifier")),
    )
    op.create_index(op.f("ix_meter_reports_user_id_period_start"), "meter_reports", ["user_id", "period_start"])
    op.create_index(op.f("ix_meter_reports_created_at"), "meter_reports", ["created_at"])
    op.create_index(
        "ix_meter_reports_unsent", "meter_reports", ["due_at"], sqlite_where=UNSENT, postgresql_where=UNSENT
    )


def downgrade() -> None:
    op.drop_table("meter_reports")
    op.drop_table("billing_periods")
