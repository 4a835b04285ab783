"""The statements of the bare server on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

Result = TypeVar("Result")

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON")
BUSY_SECONDS = 15
SWITCH_INTERVAL_SECONDS = 0.0005

PAGE = """
SELECT {total} AS total, id, status, trigger_type, started_at, duration_ms FROM executions
WHERE flow_id = :flow {mode} ORDER BY started_at DESC, id DESC LIMIT :limit"""
COUNTED = "(SELECT count(*) FROM executions WHERE flow_id = :flow {mode})"
KEPT = "(SELECT sum(executions) FROM execution_totals WHERE flow_id = :flow AND mode = 'normal')"

COUNTED_STATS = """
SELECT count(*), count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'error'),
       coalesce(avg(duration_ms), 0), max(started_at)
FROM executions WHERE flow_id = :flow {mode}"""
KEPT_STATS = """
SELECT sum(executions), sum(success), sum(error), coalesce(1.0 * sum(duration_ms) / nullif(sum(durations), 0), 0),
       (SELECT max(started_at) FROM executions WHERE flow_id = :flow AND mode = 'normal')
FROM execution_totals WHERE flow_id = :flow AND mode = 'normal'"""

FLOWS = """
SELECT (SELECT count(*) FROM flows WHERE user_id = :user AND deleted_at IS NULL), id, name, description, status,
       updated_at
FROM flows WHERE user_id = :user AND deleted_at IS NULL ORDER BY updated_at DESC, id DESC LIMIT :limit"""
FLOW = """
SELECT id, user_id, name, description, organism_yaml, status, container_id, error_message, created_at, updated_at
FROM flows WHERE id = :flow AND deleted_at IS NULL"""

HOOK = """
SELECT t.id, t.flow_id, f.active_version_id, f.active_version, f.user_id
FROM triggers t JOIN flows f ON f.id = t.flow_id
WHERE t.webhook_token = ? AND t.enabled AND t.deleted_at IS NULL AND f.deleted_at IS NULL AND f.status = 'running'"""
COUNT_RUN = """
INSERT INTO usage_records (id, user_id, period_start, slot, workflow_runs) VALUES (?, ?, ?, ?, 1)
ON CONFLICT (user_id, period_start, slot) DO UPDATE SET workflow_runs = workflow_runs + 1"""
INSERT = """
INSERT INTO executions
  (id, trigger_id, flow_id, flow_version_id, flow_version, trigger_type, status, started_at, input_payload)
VALUES (?, ?, ?, ?, ?, 'webhook', 'running', ?, ?)"""

HAS_MODE = "SELECT count(*) FROM pragma_table_info('executions') WHERE name = 'mode'"


class SqliteStore:
    """One connection and thread for reads, and one for writes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reading = ThreadPoolExecutor(1)
        self._writing = ThreadPoolExecutor(1)

    async def open(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        self._reader = await self._call(self._reading, self._connect)
        self._writer = await self._call(self._writing, self._connect)
        has_mode = (await self._read(HAS_MODE, {}))[0][0]
        mode = "AND mode = 'normal'" if has_mode else ""
        self._pages = [PAGE.format(total=total.format(mode=mode), mode=mode) for total in (COUNTED, KEPT)]
        self._statistics = [COUNTED_STATS.format(mode=mode), KEPT_STATS]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=BUSY_SECONDS)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    async def _call(self, thread: ThreadPoolExecutor, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(thread, call)

    async def _read(self, statement: str, parameters: dict[str, Any]) -> list[Any]:
        return await self._call(self._reading, lambda: self._reader.execute(statement, parameters).fetchall())

    async def read_page(self, kept: bool, flow_id: str, limit: int) -> list[Any]:
        rows = await self._read(self._pages[kept], {"flow": _hex(flow_id), "limit": limit})
        return [(row[0], _id(row[1]), row[2], row[3], _time(row[4]), row[5]) for row in rows]

    async def read_stats(self, kept: bool, flow_id: str) -> Any:
        rows = await self._read(self._statistics[kept], {"flow": _hex(flow_id)})
        return (*rows[0][:4], _time(rows[0][4]))

    async def read_flows(self, user_id: str, limit: int) -> list[Any]:
        rows = await self._read(FLOWS, {"user": _hex(user_id), "limit": limit})
        return [(row[0], _id(row[1]), *row[2:5], _time(row[5])) for row in rows]

    async def read_flow(self, flow_id: str) -> Any:
        row = (await self._read(FLOW, {"flow": _hex(flow_id)}))[0]
        return (_id(row[0]), _id(row[1]), *row[2:8], _time(row[8]), _time(row[9]))

    async def accept(self, token: str, execution_id: str, now: datetime, payload: str, slot: int) -> bool:
        return await self._call(self._writing, lambda: self._accept(token, _hex(execution_id), now, payload, slot))

    def _accept(self, token: str, execution_id: str, now: datetime, payload: str, slot: int) -> bool:
        connection = self._writer
        connection.execute("BEGIN IMMEDIATE")
        try:
            hook = connection.execute(HOOK, (token,)).fetchone()
            if hook is not None:
                month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
                connection.execute(COUNT_RUN, (execution_id, hook[4], _text(month), slot))
                connection.execute(INSERT, (execution_id, *hook[:4], _text(now), payload))
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        return hook is not None


def _hex(id: str) -> str:
    return UUID(id).hex


def _id(stored: str) -> str:
    return f"{stored[:8]}-{stored[8:12]}-{stored[12:16]}-{stored[16:20]}-{stored[20:]}"


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _time(stored: str | None) -> str | None:
    return None if stored is None else f"{stored[:10]}T{stored[11:]}Z"
