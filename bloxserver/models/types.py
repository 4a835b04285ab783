"""Column types and database defaults that mean the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

from bloxserver.clock import as_utc
from bloxserver.models.enums import Tier


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An instant to the microsecond, aware and in UTC on both databases; a naive value counts as UTC."""

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
    """Stores a member by its value, as text, without a type or constraint in the database: values can be added."""
    return sa.Enum(
        values,
        native_enum=False,
        create_constraint=False,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


class TierText(sa.types.TypeDecorator[Tier]):
    """A tier, stored as text. A value that is no tier, which another program may have written, is read as `free`."""

    impl = sa.String(32)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else Tier(value).value

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Tier | None:
        if value is None:
            return None
        return Tier(value) if value in set(Tier) else Tier.FREE


class database_now(expression.FunctionElement[datetime]):  # noqa: N801
    """The database's clock, in the form in which `UtcDateTime` stores an instant."""

    type = UtcDateTime()
    inherit_cache = True


class database_uuid(expression.FunctionElement[uuid.UUID]):  # noqa: N801
    """A random id made by the database, for rows that were not written through the models."""

    type = sa.Uuid()
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
