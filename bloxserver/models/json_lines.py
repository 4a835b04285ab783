"""Rows that the database writes as JSON: one object a line, with the names and the formats of the API.

The rows of a page are read and sent as text. Python creates no object for a row or a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

LAST_TIME = "9999-12-31 23:59:59.999999"


class _utc_text(expression.FunctionElement[str]):  # noqa: N801
    """A time as ISO 8601 in UTC, with microseconds and `Z`."""

    type = sa.Text()
    inherit_cache = True


class _id_text(expression.FunctionElement[str]):  # noqa: N801
    """An id with hyphens."""

    type = sa.Text()
    inherit_cache = True


class text_lines(expression.FunctionElement[str]):  # noqa: N801
    """The texts of all rows in their order, one a line; null if there are no rows."""

    # Unlike `aggregate_strings` of SQLAlchemy, it needs no change of the statement at each execution.
    type = sa.Text()
    inherit_cache = True


class _json_object(expression.FunctionElement[str]):  # noqa: N801
    """An object with all columns of a subquery, which are its arguments, as text."""

    type = sa.Text()
    inherit_cache = True


def json_lines(rows: sa.FromClause, names: Sequence[str]) -> sa.Select[str | None]:
    """The statement that writes an object with these columns for each row, in the order of the rows.

    The result is null if there are no rows. `rows` must be a subquery with an order. JSON escapes line feeds.
    """
    members = [_member(rows.c[name]).label(to_camel(name)) for name in names]
    item = sa.select(*members).select_from(rows).subquery("item")
    return sa.select(text_lines(_json_object(*item.c))).select_from(item)


def _member(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    if isinstance(column.type, sa.Uuid):
        return _id_text(column)
    if isinstance(column.type, sa.types.TypeDecorator) and isinstance(column.type.impl, sa.DateTime):
        return _utc_text(column)
    return column


@compiles(_utc_text, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    # The driver writes `datetime.max` as infinity, for which `to_char` returns null.
    finite = f"least(greatest({column}, timestamptz '0001-01-01 00:00:00+00'), timestamptz '{LAST_TIME}+00')"
    return f"""to_char({finite} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


@compiles(_utc_text, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    # Another program may have written fewer than six digits.
    text = compiler.process(element.clauses, **options)
    seconds = f"substr({text}, 1, 10) || 'T' || substr({text}, 12, 8)"
    return f"{seconds} || '.' || substr(substr({text}, 21) || '000000', 1, 6) || 'Z'"


@compiles(_id_text, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    text: str = compiler.process(element.clauses, **options)
    return text


@compiles(_id_text, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    text = compiler.process(element.clauses, **options)
    return " || '-' || ".join(
        f"substr({text}, {begin}, {length})" for begin, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
    )


@compiles(text_lines, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"string_agg({compiler.process(element.clauses, **options)}, chr(10))"


@compiles(text_lines, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"group_concat({compiler.process(element.clauses, **options)}, char(10))"


@compiles(_json_object, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"row_to_json({compiler.preparer.quote(_table_of(element))})::text"


@compiles(_json_object, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    members = (f"'{column.name}', {_sqlite_value(column, compiler, options)}" for column in element.clauses)
    return f"json_object({', '.join(members)})"


def _sqlite_value(column: Any, compiler: Any, options: Any) -> str:
    text: str = compiler.process(column, **options)
    # SQLite stores booleans as numbers.
    return f"json(iif({text}, 'true', 'false'))" if isinstance(column.type, sa.Boolean) else text


def _table_of(element: Any) -> str:
    name: str = next(iter(element.clauses)).table.name
    return name
