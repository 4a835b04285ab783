"""Checks whether this version supports the database's schema."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.migrate import SchemaState, schema_state


async def schema_problem(session: AsyncSession, *, must_be_migrated: bool) -> str | None:
    """Why the schema is not supported, or None. Tables created without migrations pass unless `must_be_migrated`."""
    connection = await session.connection()
    state = await connection.run_sync(schema_state)
    if state is SchemaState.OLDER or (state is SchemaState.MISSING and must_be_migrated):
        return "the database is not migrated: run `bloxserver migrate`"
    return None
