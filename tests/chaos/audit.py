"""Database triggers that record ends of executions and forbidden changes, independently of BloxServer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import Database

TABLE = "CREATE TABLE chaos_audit (kind VARCHAR(32), execution_id CHAR(36), detail TEXT)"


def _changed(*columns: str) -> str:
    return "(" + " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in columns) + ")"


END = _changed("status", "completed_at", "duration_ms", "output_payload", "error_message")
RESULT = _changed("status", "output_payload", "error_code", "completed_at")
"""Storing equal values again is not a change: a worker repeats a commit whose result it did not receive."""

RULES: dict[str, tuple[str, str, str, str]] = {
    "end": ("executions", "OLD.status = 'running' AND NEW.status <> 'running'", "NEW.id", "NEW.status"),
    "changed after the end": ("executions", f"OLD.status <> 'running' AND {END}", "NEW.id", "NEW.status"),
    "changed completed step": (
        "execution_steps",
        f"OLD.status = 'success' AND {RESULT}",
        "NEW.execution_id",
        "NEW.listener",
    ),
    "claim": (
        "executions",
        "NEW.lease IS NOT NULL AND " + _changed("lease"),
        "NEW.id",
        "NEW.worker_id",
    ),
    "recovery": ("executions", "NEW.crash_count > OLD.crash_count", "NEW.id", "'dead worker'"),
}
"""By kind of event: the table, the condition of an update, the execution's id, and the detail."""


async def install_audit(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(sa.text(TABLE))
        dialect = session.get_bind().dialect.name
        for number, kind in enumerate(RULES):
            for statement in _on_postgresql(kind, number) if dialect == "postgresql" else _on_sqlite(kind, number):
                await session.execute(sa.text(statement))


def _insert(kind: str) -> str:
    _, _, execution_id, detail = RULES[kind]
    return f"INSERT INTO chaos_audit VALUES ('{kind}', {execution_id}, {detail})"  # noqa: S608


def _on_sqlite(kind: str, number: int) -> list[str]:
    table, condition, _, _ = RULES[kind]
    return [
        f"CREATE TRIGGER chaos_{number} AFTER UPDATE ON {table} WHEN {condition} BEGIN {_insert(kind)}; END",
    ]


def _on_postgresql(kind: str, number: int) -> list[str]:
    table, condition, _, _ = RULES[kind]
    return [
        f"CREATE FUNCTION chaos_record_{number}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {_insert(kind)}; RETURN NULL; END $$",
        f"CREATE TRIGGER chaos_{number} AFTER UPDATE ON {table} FOR EACH ROW WHEN ({condition}) "
        f"EXECUTE FUNCTION chaos_record_{number}()",
    ]


@dataclass(frozen=True)
class AuditEvent:
    kind: str
    execution_id: UUID
    detail: str


async def read_audit(session: AsyncSession) -> Sequence[AuditEvent]:
    rows = await session.execute(sa.text("SELECT kind, execution_id, detail FROM chaos_audit"))
    return [AuditEvent(kind, UUID(execution_id.strip()), detail) for kind, execution_id, detail in rows]
