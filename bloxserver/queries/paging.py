from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

MAX_PAGE = 1_000_000_000
PART_ROWS = 100
"""About a millisecond to read."""


@dataclass(frozen=True)
class PageRequest:
    """The requested page of a list. `page` counts from 1."""

    page: int
    page_size: int

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.page_size


async def read_rows(session: AsyncSession, wanted: sa.Executable) -> list[sa.Row[Any]]:
    """The rows of a page. Other tasks run between parts of a long page."""
    rows: list[sa.Row[Any]] = []
    for part in (await session.execute(wanted)).partitions(PART_ROWS):
        if rows:
            await asyncio.sleep(0)
        rows += part
    return rows


@dataclass(frozen=True)
class Page:
    """One page of a list and the number of items on all pages."""

    items: Sequence[Any]
    total: int
    page: int
    page_size: int

    @property
    def has_more(self) -> bool:
        return self.page * self.page_size < self.total
