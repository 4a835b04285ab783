"""Percentiles of integers: PostgreSQL calculates them. SQLite has no function for it and returns the integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

PERCENTS = (50, 95, 99)


class percentiles(expression.FunctionElement[Any]):  # noqa: N801
    """An aggregate of integers, whose value `read_percentiles` reads."""

    type = sa.types.NullType()
    inherit_cache = True


@compiles(percentiles, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    shares = ", ".join(str(percent / 100) for percent in PERCENTS)
    values = compiler.process(element.clauses, **options)
    return f"percentile_disc(ARRAY[{shares}]) WITHIN GROUP (ORDER BY {values})"


@compiles(percentiles, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"json_group_array({compiler.process(element.clauses, **options)})"


def read_percentiles(value: list[int] | str | None) -> list[int | None]:
    """The percentiles `PERCENTS`, each None if there are no integers."""
    if not isinstance(value, str):
        return [*value] if value else [None] * len(PERCENTS)
    values: list[int] = sorted(from_json(value))
    return [_percentile(values, percent) for percent in PERCENTS]


def _percentile(values: Sequence[int], percent: int) -> int | None:
    """The smallest of the sorted values that is not exceeded by this share of them; None if there are none."""
    return values[(len(values) * percent + 99) // 100 - 1] if values else None
