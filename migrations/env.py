"""Runs the migrations over the connection that `bloxserver.models.migrate` hands in, or over DATABASE_URL's."""

import asyncio
from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext

from bloxserver.models.database import Base, database
from bloxserver.models.types import UtcDateTime, database_now, database_uuid


def render(kind: str, item: Any, autogenerate: AutogenContext) -> str | Literal[False]:
    """How our own types and defaults stand in a migration: the same text for both databases."""
    if kind == "type" and isinstance(item, sa.Enum):
        return f"sa.String({item.length})"
    ours: Any = item if kind == "type" else getattr(item, "arg", None)
    if isinstance(ours, UtcDateTime | database_now | database_uuid):
        name = type(ours).__name__
        autogenerate.imports.add(f"from bloxserver.models.types import {name}")
        return f"{name}()"
    return False


def run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # No batch mode: it replaces a table by a copy, and dropping the old one deletes what refers to it.
        render_as_batch=False,
        compare_type=True,
        render_item=render,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        context.run_migrations()


async def run_alone() -> None:
    async with database.migration_connection(print) as connection:
        await connection.run_sync(run)


given: sa.Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_alone())
