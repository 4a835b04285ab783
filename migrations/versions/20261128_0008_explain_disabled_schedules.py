"""explain disabled schedules

Triggers get the reason and the state of retries. A failure notification may concern a trigger instead of an execution.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COPIED = "id, execution_id, channel, attempts, due_at, delivered_at, error_message, created_at"
DUE = "due_at IS NOT NULL"
OF_TRIGGER = "trigger_id IS NOT NULL"


def upgrade() -> None:
    op.add_column("triggers", sa.Column("disabled_reason", sa.Text(), nullable=True))
    op.add_column("triggers", sa.Column("failed_attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("triggers", sa.Column("last_error", sa.String(length=255), nullable=True))
    op.add_column("triggers", sa.Column("retry_at", UtcDateTime(), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        _replace_notifications(of_triggers=True)
    else:
        op.alter_column("failure_notifications", "execution_id", nullable=True)
        op.add_column("failure_notifications", sa.Column("trigger_id", sa.Uuid(), nullable=True))
        op.add_column("failure_notifications", sa.Column("reason", sa.Text(), nullable=True))
        op.create_foreign_key(
            op.f("fk_failure_notifications_trigger_id_triggers"),
            "failure_notifications",
            "triggers",
            ["trigger_id"],
            ["id"],
            ondelete="CASCADE",
        )
    op.create_index(
        "ix_failure_notifications_trigger",
        "failure_notifications",
        ["trigger_id"],
        unique=False,
        sqlite_where=sa.text(OF_TRIGGER),
        postgresql_where=sa.text(OF_TRIGGER),
    )


def downgrade() -> None:
    op.drop_index("ix_failure_notifications_trigger", table_name="failure_notifications")
    op.execute("DELETE FROM failure_notifications WHERE execution_id IS NULL")
    if op.get_bind().dialect.name == "sqlite":
        _replace_notifications(of_triggers=False)
    else:
        op.drop_constraint(
            op.f("fk_failure_notifications_trigger_id_triggers"), "failure_notifications", type_="foreignkey"
        )
        op.drop_column("failure_notifications", "reason")
        op.drop_column("failure_notifications", "trigger_id")
        op.alter_column("failure_notifications", "execution_id", nullable=False)
    op.drop_column("triggers", "retry_at")
    op.drop_column("triggers", "last_error")
    op.drop_column("triggers", "failed_attempts")
    op.drop_column("triggers", "disabled_reason")


def _replace_notifications(*, of_triggers: bool) -> None:
    """SQLite cannot change a column's nullability. Nothing refers to this table, so that a copy can replace it."""
    added = (
        sa.Column("trigger_id", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["trigger_id"],
            ["triggers.id"],
            name=op.f("fk_failure_notifications_trigger_id_triggers"),
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "failure_notifications_copy",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("execution_id", sa.Uuid(), nullable=of_triggers),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=True),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        *(added if of_triggers else ()),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name=op.f("fk_failure_notifications_execution_id_executions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failure_notifications")),
        sa.UniqueConstraint("execution_id", "channel", name=op.f("uq_failure_notifications_execution_id_channel")),
    )
    op.execute(f"INSERT INTO failure_notifications_copy ({COPIED}) SELECT {COPIED} FROM failure_notifications")  # noqa: S608
    op.drop_table("failure_notifications")
    op.rename_table("failure_notifications_copy", "failure_notifications")
    op.create_index(
        "ix_failure_notifications_due",
        "failure_notifications",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text(DUE),
        postgresql_where=sa.text(DUE),
    )
