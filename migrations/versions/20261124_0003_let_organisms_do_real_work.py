"""let organisms do real work

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.api.models.types import UtcDateTime, database_now, database_uuid

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "secrets",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_secrets_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secrets")),
        sa.UniqueConstraint("user_id", "name", name=op.f("uq_secrets_user_id_name")),
    )
    op.create_table(
        "key_values",
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), server_default="null", nullable=False),
        sa.Column("size", sa.Integer(), server_default="0", nullable=False),
        sa.Column("written_by", sa.String(length=320), nullable=True),
        sa.Column("updated_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["flow_id"], ["flows.id"], name=op.f("fk_key_values_flow_id_flows"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("flow_id", "key", name=op.f("pk_key_values")),
    )
    op.create_table(
        "failure_notices",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("execution_id", sa.Uuid(), nullable=False),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=True),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name=op.f("fk_failure_notices_execution_id_executions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failure_notices")),
        sa.UniqueConstraint("execution_id", "channel", name=op.f("uq_failure_notices_execution_id_channel")),
    )
    op.create_index(
        "ix_failure_notices_due",
        "failure_notices",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.add_column("execution_steps", sa.Column("sequence", sa.Integer(), server_default="0", nullable=False))
    op.add_column("execution_steps", sa.Column("error_code", sa.String(length=64), nullable=True))
    op.add_column("execution_steps", sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("execution_steps", sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("execution_steps", sa.Column("routed_to", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("execution_steps", sa.Column("called_id", sa.Uuid(), nullable=True))
    op.add_column("execution_steps", sa.Column("copied", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("execution_steps", sa.Column("state", sa.Text(), nullable=True))
    op.create_index(
        op.f("ix_execution_steps_execution_id_sequence"), "execution_steps", ["execution_id", "sequence"], unique=False
    )
    op.add_column("executions", sa.Column("flow_version", sa.Integer(), nullable=True))
    op.add_column("executions", sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("executions", sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("executions", sa.Column("retry_of", sa.Uuid(), nullable=True))
    op.add_column("executions", sa.Column("parent_id", sa.Uuid(), nullable=True))
    op.add_column("executions", sa.Column("parent_key", sa.String(length=320), nullable=True))
    op.add_column("executions", sa.Column("depth", sa.Integer(), server_default="0", nullable=False))
    op.add_column("executions", sa.Column("worked_ms", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index(
        "ix_executions_calls",
        "executions",
        ["parent_id", "parent_key"],
        unique=True,
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.add_column("flows", sa.Column("active_version", sa.Integer(), nullable=True))
    op.add_column("flows", sa.Column("latest_version", sa.Integer(), nullable=True))
    op.add_column("flows", sa.Column("stop_requested_at", UtcDateTime(), nullable=True))
    number_of = "SELECT number FROM flow_versions WHERE flow_versions.id = "
    op.execute(f"UPDATE flows SET active_version = ({number_of} flows.active_version_id)")  # noqa: S608
    op.execute(
        "UPDATE flows SET latest_version = (SELECT max(number) FROM flow_versions WHERE flow_versions.flow_id = flows.id)"
    )
    op.execute(f"UPDATE executions SET flow_version = ({number_of} executions.flow_version_id)")  # noqa: S608


def downgrade() -> None:
    op.drop_column("flows", "stop_requested_at")
    op.drop_column("flows", "latest_version")
    op.drop_column("flows", "active_version")
    op.drop_index(
        "ix_executions_calls",
        table_name="executions",
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.drop_column("executions", "worked_ms")
    op.drop_column("executions", "depth")
    op.drop_column("executions", "parent_key")
    op.drop_column("executions", "parent_id")
    op.drop_column("executions", "retry_of")
    op.drop_column("executions", "output_tokens")
    op.drop_column("executions", "input_tokens")
    op.drop_column("executions", "flow_version")
    op.drop_index(op.f("ix_execution_steps_execution_id_sequence"), table_name="execution_steps")
    op.drop_column("execution_steps", "state")
    op.drop_column("execution_steps", "copied")
    op.drop_column("execution_steps", "called_id")
    op.drop_column("execution_steps", "routed_to")
    op.drop_column("execution_steps", "output_tokens")
    op.drop_column("execution_steps", "input_tokens")
    op.drop_column("execution_steps", "error_code")
    op.drop_column("execution_steps", "sequence")
    op.drop_index(
        "ix_failure_notices_due",
        table_name="failure_notices",
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.drop_table("failure_notices")
    op.drop_table("key_values")
    op.drop_table("secrets")
