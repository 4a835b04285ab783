"""add the outbox of emails to users

Revision ID: 0029
Revises: 0028
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

DUE = sa.text("due_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "account_emails",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("event_key", sa.String(500), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempted_at", UtcDateTime(), nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.String(255), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_emails")),
        sa.UniqueConstraint("user_id", "event_key", name=op.f("uq_account_emails_user_id_event_key")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], ondelete="CASCADE", name=op.f("fk_account_emails_user_id_users")
        ),
    )
    op.create_index(op.f("ix_account_emails_created_at"), "account_emails", ["created_at"])
    op.create_index("ix_account_emails_due", "account_emails", ["due_at"], sqlite_where=DUE, postgresql_where=DUE)
    # Notices of usage read the current periods only.
    op.create_index(op.f("ix_usage_records_period_end"), "usage_records", ["period_end"])


def downgrade() -> None:
    op.drop_index(op.f("ix_usage_records_period_end"), table_name="usage_records")
    op.drop_table("account_emails")
