"""use standard names

Columns, an index and a table get the names that the code uses since this revision. Processes of an older version cannot
use the schema afterwards: stop them before this migration.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.models.types import UtcDateTime, database_now, database_uuid

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COLUMNS = (
    ("workers", "executor_id", "worker_id"),
    ("workers", "beat_at", "last_heartbeat_at"),
    ("executions", "takeovers", "crash_count"),
    ("executions", "worked_ms", "active_ms"),
    ("secrets", "sealed", "ciphertext"),
)
NOTIFICATION_COLUMNS = "id, execution_id, channel, attempts, due_at, delivered_at, error_message, created_at"
CLAIMED = "status = 'running' AND lease IS NOT NULL"
QUARANTINED = "status = 'running' AND lease IS NULL AND {} >= 3"


def upgrade() -> None:
    _drop_index("ix_executions_suspect")
    _drop_index("ix_executions_taken")
    for table, old, new in COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    _create_index("ix_executions_quarantined", ["crash_count"], QUARANTINED.format("crash_count"))
    _create_index("ix_executions_claimed", ["worker_id", "flow_id"], CLAIMED)
    _rename_notifications("failure_notices", "failure_notifications")


def downgrade() -> None:
    _rename_notifications("failure_notifications", "failure_notices")
    _drop_index("ix_executions_claimed")
    _drop_index("ix_executions_quarantined")
    for table, old, new in COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {new} TO {old}")
    _create_index("ix_executions_taken", ["worker_id", "flow_id"], CLAIMED)
    _create_index("ix_executions_suspect", ["takeovers"], QUARANTINED.format("takeovers"))


def _create_index(name: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, "executions", columns, sqlite_where=condition, postgresql_where=condition)


def _drop_index(name: str) -> None:
    op.drop_index(name, table_name="executions")


def _rename_notifications(old: str, new: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.rename_table(old, new)
        for prefix, suffix in (("pk", ""), ("uq", "_execution_id_channel"), ("fk", "_execution_id_executions")):
            op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT {prefix}_{old}{suffix} TO {prefix}_{new}{suffix}")
        op.execute(f"ALTER INDEX ix_{old}_due RENAME TO ix_{new}_due")
    else:
        _copy_notifications(old, new)


def _copy_notifications(old: str, new: str) -> None:
    """SQLite cannot rename constraints: the table is made again under the new name. No table refers to it."""
    op.create_table(
        new,
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("execution_id", sa.Uuid(), nullable=False),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=True),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["executions.id"], name=op.f(f"fk_{new}_execution_id_executions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{new}")),
        sa.UniqueConstraint("execution_id", "channel", name=op.f(f"uq_{new}_execution_id_channel")),
    )
    op.execute(f"INSERT INTO {new} ({NOTIFICATION_COLUMNS}) SELECT {NOTIFICATION_COLUMNS} FROM {old}")  # noqa: S608
    op.drop_table(old)
    op.create_index(f"ix_{new}_due", new, ["due_at"], sqlite_where=sa.text("due_at IS NOT NULL"))
