"""Pages of lists."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.queries.paging import PART_ROWS, Page, PageRequest, read_rows


@pytest.mark.parametrize(("page", "page_size", "offset"), [(1, 20, 0), (2, 20, 20), (3, 1, 2), (100, 100, 9_900)])
def test_offset_counts_the_items_of_the_pages_before(page: int, page_size: int, offset: int) -> None:
    assert PageRequest(page, page_size).offset == offset


@pytest.mark.parametrize(
    ("page", "total", "has_more"),
    [(1, 0, False), (1, 9, False), (1, 10, False), (1, 11, True), (2, 11, False), (2, 21, True)],
)
def test_page_has_more_only_if_items_follow_it(page: int, total: int, has_more: bool) -> None:
    assert Page([], total, page, 10).has_more is has_more


async def test_rows_of_a_long_page_are_read_in_parts(session: AsyncSession) -> None:
    numbers = sa.select(sa.literal(1).label("number")).cte(recursive=True)
    next_number = sa.select(numbers.c.number + 1).where(numbers.c.number < 2 * PART_ROWS + 1)
    counted = numbers.union_all(next_number)
    rows = await read_rows(session, sa.select(counted.c.number))
    assert [row.number for row in rows] == [*range(1, 2 * PART_ROWS + 2)]


def test_page_after_the_last_one_has_no_more() -> None:
    assert not Page([], 5, 7, 10).has_more
