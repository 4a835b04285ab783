"""The statements of the bare server on PostgreSQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import asyncpg

POOL_SIZE = 10

PAGE = """
SELECT {total} AS total, id::text, status, trigger_type, started_at, duration_ms FROM executions
WHERE flow_id = $1 {mode} ORDER BY started_at DESC, id DESC LIMIT $2"""
COUNTED = "(SELECT count(*) FROM executions WHERE flow_id = $1 {mode})"
KEPT = "(SELECT sum(executions)::bigint FROM execution_totals WHERE flow_id = $1 AND mode = 'normal')"

COUNTED_STATS = """
SELECT count(*), count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'error'),
       coalesce(avg(duration_ms), 0)::float8, max(started_at)
FROM executions WHERE flow_id = $1 {mode}"""
KEPT_STATS = """
SELECT sum(executions)::bigint, sum(success)::bigint, sum(error)::bigint,
       coalesce(sum(duration_ms) / nullif(sum(durations), 0), 0)::float8,
       (SELECT max(started_at) FROM executions WHERE flow_id = $1 AND mode = 'normal')
FROM execution_totals WHERE flow_id = $1 AND mode = 'normal'"""

FLOWS = """
SELECT (SELECT count(*) FROM flows WHERE user_id = $1 AND deleted_at IS NULL), id::text, name, description, status,
       updated_at
FROM flows WHERE user_id = $1 AND deleted_at IS NULL ORDER BY updated_at DESC, id DESC LIMIT $2"""
FLOW = """
SELECT id::text, user_id::text, name, description, organism_yaml, status, container_id, error_message, created_at,
       updated_at
FROM flows WHERE id = $1 AND deleted_at IS NULL"""

WEBHOOK = """
WITH hook AS MATERIALIZED (
  SELECT t.id, t.flow_id, f.user_id, f.active_version_id, f.active_version
  FROM triggers t JOIN flows f ON f.id = t.flow_id
  WHERE t.webhook_token = $1 AND t.enabled AND t.deleted_at IS NULL AND f.deleted_at IS NULL AND f.status = 'running'
), counted AS (
  INSERT INTO usage_records (id, user_id, period_start, slot, workflow_runs)
  SELECT $2, user_id, date_trunc('month', $3, 'UTC'), $4, 1 FROM hook
  ON CONFLICT (user_id, period_start, slot) DO UPDATE SET workflow_runs = usage_records.workflow_runs + 1
)
INSERT INTO executions
  (id, flow_id, flow_version_id, flow_version, trigger_id, trigger_type, status, started_at, input_payload)
SELECT $2, flow_id, active_version_id, active_version, id, 'webhook', 'running', $3, $5 FROM hook
RETURNING true"""

HAS_MODE = """
SELECT true FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = 'executions' AND column_name = 'mode'"""


class PostgresStore:
    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql+asyncpg:", "postgresql:")

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(self._url, min_size=POOL_SIZE, max_size=POOL_SIZE)
        # Earlier versions have no column `mode`. In later ones the indexes begin with the flow and the mode.
        mode = "AND mode = 'normal'" if await self._pool.fetchval(HAS_MODE) else ""
        self._pages = [PAGE.format(total=total.format(mode=mode), mode=mode) for total in (COUNTED, KEPT)]
        self._statistics = [COUNTED_STATS.format(mode=mode), KEPT_STATS]

    async def read_page(self, kept: bool, flow_id: str, limit: int) -> list[Any]:
        rows: list[Any] = await self._pool.fetch(self._pages[kept], flow_id, limit)
        return rows

    async def read_stats(self, kept: bool, flow_id: str) -> Any:
        return await self._pool.fetchrow(self._statistics[kept], flow_id)

    async def read_flows(self, user_id: str, limit: int) -> list[Any]:
        rows: list[Any] = await self._pool.fetch(FLOWS, user_id, limit)
        return rows

    async def read_flow(self, flow_id: str) -> Any:
        return await self._pool.fetchrow(FLOW, flow_id)

    async def accept(self, token: str, execution_id: str, now: datetime, payload: str, slot: int) -> bool:
        return await self._pool.fetchval(WEBHOOK, token, execution_id, now, slot, payload) is True
