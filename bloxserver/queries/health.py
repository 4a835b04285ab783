"""Whether the database answers, and whether its schema is one that this version can serve."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.migrate import SchemaState, schema_state

UNREACHABLE = "the database cannot be reached"


async def database_problem(session: AsyncSession) -> str | None:
    """Why the database cannot be used, without its address; None where it answers."""
    try:
        await session.execute(sa.select(1))
    except (SQLAlchemyError, OSError):
        return UNREACHABLE
    return None


async def schema_problem(session: AsyncSession, *, must_be_migrated: bool) -> str | None:
    """Why the schema cannot be served. Tables that were made without migrations are fine unless they must be."""
    connection = await session.connection()
    state = await connection.run_sync(schema_state)
    if state is SchemaState.OLDER or (state is SchemaState.MISSING and must_be_migrated):
        return "the database is not migrated: run `bloxserver migrate`"
    return None
