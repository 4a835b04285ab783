"""Fills a database with a user, flows, a webhook and a history of executions."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import sqlalchemy as sa
from uuid_utils import compat as uuid_utils

FLOWS = 21
INTERVAL = timedelta(seconds=1)
STATUSES = {"success": 90, "error": 8, "timeout": 1, "cancelled": 1}
TRIGGER_TYPES = {"webhook": 80, "schedule": 15, "manual": 5}
INPUT = '{"name": "Ada", "order": {"id": 4711, "lines": [{"sku": "A-17", "count": 3}]}, "source": "shop"}'
OUTPUT = '{"message": "Hello, Ada!", "order": 4711, "accepted": true}'
ERROR = "http.request: the server answered 503 Service Unavailable"

COLUMNS = (
    "id",
    "flow_id",
    "trigger_id",
    "trigger_type",
    "status",
    "started_at",
    "picked_up_at",
    "completed_at",
    "duration_ms",
    "error_message",
    "input_payload",
    "output_payload",
)
Row = tuple[Any, ...]


@dataclass(frozen=True)
class History:
    """The rows that the requests use."""

    user_id: uuid.UUID
    flow_id: uuid.UUID
    token: str


async def fill(url: str, executions: int, clerk_id: str) -> History:
    """Insert the rows. The user has the tier pro and no limits that a benchmark reaches."""
    generator = random.Random(executions)  # noqa: S311
    user_id, trigger_id = uuid_utils.uuid7(), uuid_utils.uuid7()
    flow_ids = [uuid_utils.uuid7() for _ in range(FLOWS)]
    history = History(user_id, flow_ids[0], f"{generator.getrandbits(250):043x}"[:43])
    limits = '{"requests_per_minute": 1000000000, "webhooks_per_minute": 1000000000, "stored_bytes": 1000000000000}'
    tables: dict[str, tuple[tuple[str, ...], list[Row]]] = {
        "users": (
            ("id", "clerk_id", "email", "name", "tier", "limits"),
            [(user_id, clerk_id, "dev@localhost", "Dev User", "pro", limits)],
        ),
        "flows": (
            ("id", "user_id", "name", "description", "status"),
            [
                (id, user_id, f"flow {number}", "A flow of the benchmark", "running")
                for number, id in enumerate(flow_ids)
            ],
        ),
        "triggers": (
            ("id", "flow_id", "type", "name", "webhook_token"),
            [(trigger_id, history.flow_id, "webhook", "orders", history.token)],
        ),
    }
    rows = _executions(generator, executions, history.flow_id, trigger_id)
    if url.startswith("sqlite"):
        _fill_sqlite(sa.make_url(url).database or "", tables, rows)
    else:
        await _fill_postgres(url.replace("postgresql+asyncpg:", "postgresql:"), tables, rows)
    return history


def _executions(generator: random.Random, count: int, flow_id: uuid.UUID, trigger_id: uuid.UUID) -> Iterator[Row]:
    """Yield executions that have ended, the newest a minute ago."""
    first = datetime.now(UTC) - timedelta(minutes=1) - count * INTERVAL
    statuses = generator.choices(list(STATUSES), list(STATUSES.values()), k=count)
    kinds = generator.choices(list(TRIGGER_TYPES), list(TRIGGER_TYPES.values()), k=count)
    for number, (status, kind) in enumerate(zip(statuses, kinds, strict=True)):
        started = first + number * INTERVAL
        duration = generator.randrange(5, 5_000)
        yield (
            uuid_utils.uuid7(nanoseconds=round(started.timestamp() * 1e9)),
            flow_id,
            trigger_id if kind == "webhook" else None,
            kind,
            status,
            started,
            started + timedelta(milliseconds=3),
            started + timedelta(milliseconds=duration),
            duration,
            ERROR if status == "error" else None,
            INPUT,
            OUTPUT if status == "success" else None,
        )


async def _fill_postgres(url: str, tables: dict[str, tuple[tuple[str, ...], list[Row]]], rows: Iterator[Row]) -> None:
    connection = await asyncpg.connect(url)
    try:
        for table, (columns, records) in tables.items():
            await connection.copy_records_to_table(table, columns=columns, records=records)
        await connection.copy_records_to_table("executions", columns=COLUMNS, records=rows)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _fill_sqlite(path: str, tables: dict[str, tuple[tuple[str, ...], list[Row]]], rows: Iterator[Row]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for table, (columns, records) in tables.items():
            connection.executemany(_insert(table, columns), map(_sqlite_row, records))
        connection.executemany(_insert("executions", COLUMNS), map(_sqlite_row, rows))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _insert(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608


def _sqlite_row(row: Row) -> Row:
    return tuple(map(_sqlite_value, row))


def _sqlite_value(value: Any) -> Any:
    """Return the value as BloxServer stores it."""
    if isinstance(value, uuid.UUID):
        return value.hex
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, datetime) else value
