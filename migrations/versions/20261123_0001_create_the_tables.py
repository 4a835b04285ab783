"""create the tables

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from bloxserver.api.models.types import UtcDateTime, database_now, database_uuid

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DEFAULT_ORGANISM = """\
organism:
  name: my-flow
listeners:
  - name: greeter
    payload_class: handlers.hello.Greeting
    handler: handlers.hello.handle_greeting
    description: A friendly greeter agent
    agent: true
    peers: []
"""


def upgrade() -> None:
    op.create_table(
        "stripe_events",
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("event_type", sa.String(length=255), server_default="", nullable=False),
        sa.Column("received_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("processed_at", UtcDateTime(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_stripe_events")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("clerk_id", sa.String(length=255), nullable=False),
        sa.Column("email", sa.String(length=320), server_default="", nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("avatar_url", sa.Text(), nullable=True),
        sa.Column("tier", sa.String(32), server_default="free", nullable=False),
        sa.Column("billing_status", sa.String(32), server_default="active", nullable=False),
        sa.Column("stripe_customer_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_subscription_id", sa.String(length=255), nullable=True),
        sa.Column("stripe_subscription_item_id", sa.String(length=255), nullable=True),
        sa.Column("trial_ends_at", UtcDateTime(), nullable=True),
        sa.Column("current_period_start", UtcDateTime(), nullable=True),
        sa.Column("current_period_end", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("clerk_id", name=op.f("uq_users_clerk_id")),
        sa.UniqueConstraint("stripe_customer_id", name=op.f("uq_users_stripe_customer_id")),
        sa.UniqueConstraint("stripe_subscription_id", name=op.f("uq_users_stripe_subscription_id")),
    )
    op.create_table(
        "workers",
        sa.Column("executor_id", sa.String(length=64), nullable=False),
        sa.Column("beat_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("started_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.PrimaryKeyConstraint("executor_id", name=op.f("pk_workers")),
    )
    op.create_table(
        "flows",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.String(length=500), nullable=True),
        sa.Column(
            "organism_yaml",
            sa.Text(),
            server_default=DEFAULT_ORGANISM,
            nullable=False,
        ),
        sa.Column("canvas_state", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("status", sa.String(32), server_default="stopped", nullable=False),
        sa.Column("active_version_id", sa.Uuid(), nullable=True),
        sa.Column("container_id", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_flows_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flows")),
    )
    op.create_index(
        "ix_flows_unsettled",
        "flows",
        ["updated_at"],
        unique=False,
        sqlite_where=sa.text("status IN ('starting', 'stopping')"),
        postgresql_where=sa.text("status IN ('starting', 'stopping')"),
    )
    op.create_index(op.f("ix_flows_user_id_updated_at_id"), "flows", ["user_id", "updated_at", "id"], unique=False)

    op.create_table(
        "usage_records",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("period_start", UtcDateTime(), nullable=False),
        sa.Column("period_end", UtcDateTime(), nullable=True),
        sa.Column("slot", sa.Integer(), server_default="0", nullable=False),
        sa.Column("workflow_runs", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("llm_tokens_in", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("llm_tokens_out", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_synced_runs", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_synced_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_usage_records_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_records")),
        sa.UniqueConstraint("user_id", "period_start", "slot", name=op.f("uq_usage_records_user_id_period_start_slot")),
    )
    op.create_table(
        "user_api_keys",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("encrypted_key", sa.LargeBinary(), nullable=True),
        sa.Column("key_hint", sa.String(length=16), nullable=True),
        sa.Column("is_valid", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("last_used_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_user_api_keys_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_api_keys")),
        sa.UniqueConstraint("user_id", "provider", name=op.f("uq_user_api_keys_user_id_provider")),
    )
    op.create_table(
        "flow_versions",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("organism_yaml", sa.Text(), nullable=False),
        sa.Column("canvas_state", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["flow_id"], ["flows.id"], name=op.f("fk_flow_versions_flow_id_flows"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flow_versions")),
        sa.UniqueConstraint("flow_id", "number", name=op.f("uq_flow_versions_flow_id_number")),
    )
    op.create_table(
        "triggers",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("config", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("webhook_token", sa.String(length=255), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("created_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.ForeignKeyConstraint(["flow_id"], ["flows.id"], name=op.f("fk_triggers_flow_id_flows"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_triggers")),
        sa.UniqueConstraint("webhook_token", name=op.f("uq_triggers_webhook_token")),
    )
    op.create_index(
        op.f("ix_triggers_flow_id_created_at_id"), "triggers", ["flow_id", "created_at", "id"], unique=False
    )

    op.create_table(
        "executions",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("flow_id", sa.Uuid(), nullable=False),
        sa.Column("flow_version_id", sa.Uuid(), nullable=True),
        sa.Column("trigger_id", sa.Uuid(), nullable=True),
        sa.Column("trigger_type", sa.String(32), nullable=False),
        sa.Column("target", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(32), server_default="running", nullable=False),
        sa.Column("started_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("picked_up_at", UtcDateTime(), nullable=True),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("input_payload", sa.Text(), nullable=True),
        sa.Column("input_encoding", sa.String(32), server_default="text", nullable=False),
        sa.Column("output_payload", sa.Text(), nullable=True),
        sa.Column("dispatch_number", sa.Integer(), server_default="0", nullable=False),
        sa.Column("dispatched_at", UtcDateTime(), nullable=True),
        sa.Column("resume_at", UtcDateTime(), nullable=True),
        sa.Column("lease", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(
            ["flow_id"], ["flows.id"], name=op.f("fk_executions_flow_id_flows"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["flow_version_id"],
            ["flow_versions.id"],
            name=op.f("fk_executions_flow_version_id_flow_versions"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["trigger_id"], ["triggers.id"], name=op.f("fk_executions_trigger_id_triggers"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_executions")),
    )
    op.create_index(
        op.f("ix_executions_flow_id_started_at_id"), "executions", ["flow_id", "started_at", "id"], unique=False
    )
    op.create_index(
        op.f("ix_executions_flow_id_status_started_at_id"),
        "executions",
        ["flow_id", "status", "started_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_executions_live",
        "executions",
        ["flow_id", "dispatched_at", "started_at"],
        unique=False,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index(op.f("ix_executions_trigger_id"), "executions", ["trigger_id"], unique=False)

    op.create_table(
        "execution_steps",
        sa.Column("id", sa.Uuid(), server_default=database_uuid(), nullable=False),
        sa.Column("execution_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("listener", sa.String(length=255), nullable=False),
        sa.Column("handler", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(32), server_default="success", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("input_payload", sa.Text(), nullable=True),
        sa.Column("output_payload", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("started_at", UtcDateTime(), server_default=database_now(), nullable=False),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["executions.id"],
            name=op.f("fk_execution_steps_execution_id_executions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution_steps")),
        sa.UniqueConstraint("execution_id", "key", name=op.f("uq_execution_steps_execution_id_key")),
    )


def downgrade() -> None:
    op.drop_table("execution_steps")
    op.drop_index(op.f("ix_executions_trigger_id"), table_name="executions")
    op.drop_index(
        "ix_executions_live",
        table_name="executions",
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.drop_index(op.f("ix_executions_flow_id_status_started_at_id"), table_name="executions")
    op.drop_index(op.f("ix_executions_flow_id_started_at_id"), table_name="executions")

    op.drop_table("executions")
    op.drop_index(op.f("ix_triggers_flow_id_created_at_id"), table_name="triggers")

    op.drop_table("triggers")
    op.drop_table("flow_versions")
    op.drop_table("user_api_keys")
    op.drop_table("usage_records")
    op.drop_index(op.f("ix_flows_user_id_updated_at_id"), table_name="flows")
    op.drop_index(
        "ix_flows_unsettled",
        table_name="flows",
        sqlite_where=sa.text("status IN ('starting', 'stopping')"),
        postgresql_where=sa.text("status IN ('starting', 'stopping')"),
    )

    op.drop_table("flows")
    op.drop_table("workers")
    op.drop_table("users")
    op.drop_table("stripe_events")
