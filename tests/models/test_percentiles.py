from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.percentiles import PERCENTS, percentiles, read_percentiles


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 99, 100, 101, 400])
async def test_percentile_is_the_smallest_value_with_that_share_of_values_up_to_it(
    session: AsyncSession, count: int
) -> None:
    values = (*range(1, count, 2), *range(0, count, 2))
    rows = sa.union_all(*(sa.select(sa.literal(value).label("value")) for value in values)).subquery()
    found = read_percentiles(await session.scalar(sa.select(percentiles(rows.c.value))))
    for percent, value in zip(PERCENTS, found, strict=True):
        assert value is not None
        assert (value + 1) * 100 >= percent * count > value * 100


async def test_percentiles_of_no_values_are_null(session: AsyncSession) -> None:
    none = sa.select(sa.literal(1).label("value")).where(sa.false()).subquery()
    value = await session.scalar(sa.select(percentiles(none.c.value)))
    assert read_percentiles(value) == [None] * len(PERCENTS)
