"""A process that starts with a schema of another version, without a schema, or with foreign tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from bloxserver.api.main import prepare_database
from bloxserver.errors import SettingsError
from bloxserver.models import migrate, tables
from bloxserver.models.database import Base, Database
from bloxserver.models.migrate import SchemaState
from bloxserver.settings import Settings
from tests.models.migrating import contents, fill, state

LATER_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.String(10), server_default="none", nullable=False))


def downgrade() -> None:
    op.drop_column("users", "nickname")
"""


async def set_revision(database: Database, revision: str) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


@pytest.fixture
def later_code(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Simulate a version with one more migration. Undo the patch to return to this version."""
    scripts = tmp_path / "migrations"
    shutil.copytree(migrate.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    head = migrate.known_revisions()[-1]
    (scripts / "versions" / "20990101_9999_later.py").write_text(LATER_REVISION.format(head=head))
    patch = pytest.MonkeyPatch()
    patch.setattr(migrate, "SCRIPTS", scripts)
    migrate.known_revisions.cache_clear()
    yield patch
    patch.undo()
    migrate.known_revisions.cache_clear()


def test_names_of_scripts_have_their_revisions_in_order() -> None:
    scripts = ScriptDirectory(str(migrate.SCRIPTS))
    assert list(migrate.known_revisions()) == [script.revision for script in scripts.walk_revisions()][::-1]
    assert scripts.get_heads() == [migrate.known_revisions()[-1]]


def production(settings: Settings) -> Settings:
    return settings.model_copy(update={"env": "production", "auto_create_tables": True})


async def test_production_starts_only_with_a_compatible_schema(database: Database, live_settings: Settings) -> None:
    settings = production(live_settings)
    with pytest.raises(SettingsError, match="schema is missing: run `bloxserver migrate` first"):
        await prepare_database(settings, database)
    assert await state(database) is SchemaState.MISSING, "nothing was created"
    await database.migrate()
    await prepare_database(settings, database)
    await set_revision(database, "from_the_future")
    assert await state(database) is SchemaState.NEWER
    await prepare_database(settings, database)
    await database.migrate()
    assert await state(database) is SchemaState.NEWER, "an older process leaves a newer schema alone"
    await set_revision(database, migrate.known_revisions()[-1])


async def test_development_migrates_unless_disabled(database: Database, live_settings: Settings) -> None:
    await prepare_database(live_settings.model_copy(update={"auto_create_tables": False}), database)
    assert await state(database) is SchemaState.MISSING
    await prepare_database(live_settings, database)
    assert await state(database) is SchemaState.CURRENT


async def test_tables_from_create_all_are_stamped(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with database.transaction() as session:
        await fill(session)
    before = await contents(database)
    await database.migrate()
    assert await state(database) is SchemaState.CURRENT
    assert await contents(database) == before


async def test_foreign_tables_of_the_same_name_are_not_changed(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE flows (id INTEGER PRIMARY KEY, mine TEXT)"))
        before = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    with pytest.raises(SettingsError, match="tables that bloxserver did not create"):
        await database.migrate()
    async with database.engine.connect() as connection:
        assert await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()) == before


async def test_new_version_migrates_an_older_schema_with_rows(
    database: Database, live_settings: Settings, later_code: pytest.MonkeyPatch
) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate.upgrade, "9999")
        await connection.run_sync(migrate.downgrade, "-1")
    async with database.transaction() as session:
        await fill(session)
    before = await contents(database)
    assert await state(database) is SchemaState.OLDER
    with pytest.raises(SettingsError, match="schema is older"):
        await prepare_database(production(live_settings), database)
    await database.migrate()
    assert await state(database) is SchemaState.CURRENT
    assert await contents(database) == before
    later_code.undo()
    migrate.known_revisions.cache_clear()
    assert await state(database) is SchemaState.NEWER
    async with database.transaction() as session:
        session.add(tables.UserRecord(clerk_id="written by the older code"))
