"""Reads, fills and empties databases of tests that migrate."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import new_id
from bloxserver.models import migrate
from bloxserver.models.database import Base, Database
from bloxserver.models.migrate import SchemaState, schema_state
from bloxserver.models.types import StoredJson, TierText, UtcDateTime

MOMENT = datetime(2026, 6, 1, 12, 30, 45, 123456, tzinfo=UTC)


def empty(connection: sa.Connection) -> None:
    found = sa.MetaData()
    found.reflect(connection)
    found.drop_all(connection)


async def state(database: Database) -> SchemaState:
    async with database.engine.connect() as connection:
        return await connection.run_sync(schema_state)


async def downgrade(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate.downgrade, "base")


async def fill(session: AsyncSession) -> None:
    """Insert a row with values for all columns into every table."""
    user, flow, version, trigger, execution, step = (new_id() for _ in range(6))
    keys: dict[str, dict[str, Any]] = {
        "users": {"id": user},
        "deleted_users": {},
        "flows": {"id": flow, "user_id": user, "active_version_id": version},
        "flow_versions": {"id": version, "flow_id": flow},
        "triggers": {"id": trigger, "flow_id": flow},
        "executions": {"id": execution, "flow_id": flow, "flow_version_id": version, "trigger_id": trigger},
        "execution_steps": {"id": step, "execution_id": execution},
        "usage_records": {"user_id": user},
        "user_api_keys": {"user_id": user},
        "api_keys": {"user_id": user},
        "idempotency_keys": {},
        "audit_events": {},
        "stripe_events": {},
        "billing_periods": {},
        "meter_reports": {},
        "llm_providers": {},
        "llm_provider_leases": {},
        "llm_windows": {"user_id": user},
        "llm_calls": {"user_id": user},
        "llm_reservations": {"user_id": user},
        "storage_samples": {},
        "workers": {},
        "rate_counters": {},
        "secrets": {"user_id": user},
        "email_counts": {"user_id": user},
        "account_emails": {"user_id": user},
        "stored_bytes": {"user_id": user},
        "execution_totals": {},
        "execution_series": {},
        "key_values": {"flow_id": flow},
        "resumptions": {"execution_id": execution},
        "flow_vars": {"flow_id": flow},
        "signing_secrets": {"trigger_id": trigger},
        "webhook_deliveries": {"trigger_id": trigger},
        "failure_notifications": {"execution_id": execution, "trigger_id": trigger},
    }
    samples: dict[type[Any], Any] = {
        sa.String: "t",
        sa.Integer: 2**31 - 1,
        sa.Boolean: True,
        sa.LargeBinary: b"\0\xff",
        sa.JSON: {"a": [1, None]},
        StoredJson: {"a": [1, None]},
        UtcDateTime: MOMENT,
        TierText: "pro",
        sa.Uuid: user,
        sa.Date: MOMENT.date(),
    }
    for table in Base.metadata.sorted_tables:
        values: dict[str, Any] = {}
        for column in table.columns:
            kind = next(kind for kind in samples if isinstance(column.type, kind))
            values[column.name] = column.type.enums[0] if isinstance(column.type, sa.Enum) else samples[kind]
        await session.execute(sa.insert(table).values(values | keys[table.name]))


async def contents(database: Database) -> dict[str, list[Any]]:
    async with database.transaction(read_only=True) as session:
        return {
            table.name: [tuple(row) for row in await session.execute(sa.select(table))]
            for table in Base.metadata.sorted_tables
        }
