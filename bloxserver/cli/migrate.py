"""`bloxserver migrate`: migrates the database to the newest schema."""

from __future__ import annotations

import typer

from bloxserver.cli.startup import load_settings, run


def migrate() -> None:
    """Migrate the database of DATABASE_URL to the newest schema.

    The command can be repeated, and run on several machines at once. In production, run it before a new version serves.
    """
    load_settings()
    run(_migrate())


async def _migrate() -> None:
    from bloxserver.models.database import database
    from bloxserver.models.migrate import schema_state

    await database.migrate(lambda reason: typer.echo(f"bloxserver: {reason}", err=True))
    async with database.engine.connect() as connection:
        state = await connection.run_sync(schema_state)
    await database.dispose()
    typer.echo(f"database schema: {state.value}")
