"""Column types and database defaults with the same meaning on SQLite and PostgreSQL."""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

from bloxserver.clock import as_utc
from bloxserver.models.enums import Tier
from bloxserver.raw_json import MAX_STORED_VALUES, RawJson, value_of_text


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A time with microseconds, returned as an aware datetime in UTC. A naive value is taken as UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        aware = as_utc(value)
        return aware.replace(tzinfo=None) if dialect.name == "sqlite" else aware

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else as_utc(value)


def enum_text(values: type[enum.StrEnum]) -> sa.Enum:
    """Return a column type that stores a member's value as text.

    The database has no enum type or constraint, so that adding a value needs no migration.
    """
    return sa.Enum(
        values,
        native_enum=False,
        create_constraint=False,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


class TierText(sa.types.TypeDecorator[Tier]):
    """A tier, stored as text. An unknown value, which another program may have written, is read as `free`."""

    impl = sa.String(32)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else Tier(value).value

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Tier | None:
        if value is None:
            return None
        return Tier(value) if value in set(Tier) else Tier.FREE


class StoredJson(sa.types.TypeDecorator[Any]):
    """JSON. A large value is written and returned as `RawJson`, which nothing parses; a small one as usual."""

    impl = sa.JSON
    cache_ok = True
    hashable = False

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[Any], str | None]:
        def write(value: Any) -> str | None:
            if isinstance(value, RawJson):
                return value.text
            return None if value is None and self._none_as_null else json.dumps(value)

        return write

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        # The driver of PostgreSQL parses the values of a JSON column, but not those of a text.
        return sa.type_coerce(sa.cast(column, sa.Text), self)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[str | None], Any]:
        return lambda text: None if text is None else value_of_text(text, MAX_STORED_VALUES)

    @property
    def _none_as_null(self) -> bool:
        none_as_null: bool = self.impl_instance.none_as_null  # type: ignore[attr-defined]
        return none_as_null


class LenientJson(StoredJson):
    """JSON of another program. What Python cannot parse, such as a number of 5,000 digits, is read as None."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[str | None], Any]:
        def read(text: str | None) -> Any:
            try:
                return None if text is None else json.loads(text)
            except (ValueError, RecursionError):
                return None

        return read


class database_now(expression.FunctionElement[datetime]):  # noqa: N801
    """The current time of the database, in the storage format of `UtcDateTime`."""

    type = UtcDateTime()
    inherit_cache = True


class database_uuid(expression.FunctionElement[uuid.UUID]):  # noqa: N801
    """A random id from the database, for rows that are not inserted through the models."""

    type = sa.Uuid()
    inherit_cache = True


class stored_bytes(expression.FunctionElement[int]):  # noqa: N801
    """The bytes that a text takes in the database; null for null."""

    type = sa.BigInteger()
    inherit_cache = True


class text_bytes(expression.FunctionElement[int]):  # noqa: N801
    """The bytes of a text as it is sent, not as it is compressed in the database; null for null."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(database_now, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return "clock_timestamp()"


@compiles(database_now, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(database_uuid, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return "gen_random_uuid()"


@compiles(database_uuid, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return "lower(hex(randomblob(16)))"


@compiles(stored_bytes, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"pg_column_size({compiler.process(element.clauses, **options)})"  # does not read the text itself


@compiles(text_bytes, "postgresql")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"  # does not read the text itself


@compiles(text_bytes, "sqlite")
@compiles(stored_bytes, "sqlite")
def _(element: Any, compiler: Any, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


def size_of(*columns: Any) -> sa.Label[int]:
    """The bytes that these columns take together in the database."""
    sizes: list[sa.ColumnElement[int]] = [sa.func.coalesce(stored_bytes(column), 0) for column in columns]
    return sum(sizes[1:], sizes[0]).label("size")
