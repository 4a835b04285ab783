"""Whether the schema can be served, for each state of the schema."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import Database
from bloxserver.models.migrate import SCRIPTS
from bloxserver.queries.health import schema_problem

NOT_MIGRATED = "the database is not migrated: run `bloxserver migrate`"


async def test_tables_without_a_revision_are_a_problem_only_if_migrations_are_required(session: AsyncSession) -> None:
    assert await schema_problem(session, must_be_migrated=False) is None
    assert await schema_problem(session, must_be_migrated=True) == NOT_MIGRATED


async def test_migrated_database_has_no_problem(live_database: Database) -> None:
    async with live_database.sessions() as session:
        assert await schema_problem(session, must_be_migrated=True) is None


@pytest.mark.parametrize("must_be_migrated", [False, True])
async def test_older_revision_is_a_problem(live_database: Database, must_be_migrated: bool) -> None:
    oldest = ScriptDirectory(str(SCRIPTS)).get_base()
    async with live_database.sessions() as session:
        await session.execute(sa.text("UPDATE alembic_version SET version_num = :oldest"), {"oldest": oldest})
        assert await schema_problem(session, must_be_migrated=must_be_migrated) == NOT_MIGRATED


async def test_unknown_revision_of_a_newer_version_has_no_problem(live_database: Database) -> None:
    async with live_database.sessions() as session:
        await session.execute(sa.text("UPDATE alembic_version SET version_num = 'unknown'"))
        assert await schema_problem(session, must_be_migrated=True) is None
