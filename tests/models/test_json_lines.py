"""JSON that the database writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.json_lines import json_lines
from bloxserver.models.types import UtcDateTime

FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


async def written(session: AsyncSession, *rows: dict[str, Any]) -> list[Any]:
    """The objects that the database writes for these rows."""
    types: dict[type, Any] = {
        UUID: sa.Uuid(),
        datetime: UtcDateTime(),
        int: sa.BigInteger(),
        float: sa.Double(),
        str: sa.Text(),
    }
    selects = [
        sa.select(
            *(sa.literal(value, types.get(type(value), sa.Text())).label(name) for name, value in row.items()),
            sa.literal(number).label("number"),
        )
        for number, row in enumerate(rows)
    ]
    union = sa.union_all(*selects).subquery()
    ordered = sa.select(union).order_by(union.c.number.desc()).limit(100).subquery()
    lines = await session.scalar(json_lines(ordered, [*rows[0]]))
    assert lines is not None
    return [json.loads(line) for line in reversed(lines.split("\n"))]


async def test_object_has_names_in_camel_case_and_values_in_the_formats_of_the_api(session: AsyncSession) -> None:
    id, at = uuid4(), datetime(2024, 5, 1, 12, 0, 0, 70, tzinfo=UTC)
    row = {"row_id": id, "started_at": at, "p50_duration_ms": 2**53 + 1, "mean": 0.5, "end": None}
    assert await written(session, row) == [
        {
            "rowId": str(id),
            "startedAt": "2024-05-01T12:00:00.000070Z",
            "p50DurationMs": 2**53 + 1,
            "mean": 0.5,
            "end": None,
        }
    ]


@pytest.mark.parametrize("text", ['"', "\\", "a\nb\r\t", "\x01\x7f\u2028", "é🌍", "", "null", "'"])
async def test_text_is_escaped(session: AsyncSession, text: str) -> None:
    assert await written(session, {"text": text}, {"text": "next"}) == [{"text": text}, {"text": "next"}]


async def test_times_of_the_first_and_the_last_year_are_complete(session: AsyncSession) -> None:
    rows = [{"at": value} for value in (FIRST, FIRST + timedelta(seconds=1), LAST)]
    assert await written(session, *rows) == [
        {"at": "0001-01-01T00:00:00.000000Z"},
        {"at": "0001-01-01T00:00:01.000000Z"},
        {"at": "9999-12-31T23:59:59.999999Z"},
    ]


async def test_no_rows_are_null(session: AsyncSession) -> None:
    rows = sa.select(sa.literal("x").label("text")).where(sa.false()).subquery()
    assert await session.scalar(json_lines(rows, ["text"])) is None
