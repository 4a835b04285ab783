"""Runs migrations, and checks whether this version can use the schema."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from bloxserver.errors import SettingsError
from bloxserver.models.base import Base


def find_scripts(package: Path) -> Path:
    """Return the folder of migration scripts: `migrations` in the package (wheel), or next to it (checkout).

    A folder is used only if it has an `env.py`, because git leaves a `__pycache__` in place of removed scripts.
    """
    installed, checkout = package / "migrations", package.parent / "migrations"
    return checkout if not (installed / "env.py").is_file() and checkout.is_dir() else installed


SCRIPTS = find_scripts(Path(__file__).parents[1])


class SchemaState(StrEnum):
    CURRENT = "current"
    NEWER = "newer"
    """The revision is unknown: a newer version has migrated the database, for example in a rolling deployment."""
    OLDER = "older"
    MISSING = "missing"
    """There is no revision: the database is empty, or its tables were created without migrations."""


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Migrate up to `revision`. Does nothing if the schema is current or newer.

    Tables that `create_all` created from the models are stamped with the newest revision. Raises `SettingsError` if the
    database has other tables of these names.
    """
    state = schema_state(connection)
    if state is SchemaState.MISSING and sa.inspect(connection).has_table("flows"):
        if compare_metadata(MigrationContext.configure(connection), Base.metadata):
            raise SettingsError(["DATABASE_URL: the database has tables that bloxserver did not create"])
        command.stamp(_config(connection), "head")
    elif state is not SchemaState.NEWER:
        command.upgrade(_config(connection), revision)


def downgrade(connection: sa.Connection, revision: str) -> None:
    command.downgrade(_config(connection), revision)


def check(connection: sa.Connection) -> None:
    """Raise `alembic.util.CommandError` if models and migrations differ."""
    command.check(_config(connection))


@lru_cache
def _revisions() -> tuple[frozenset[str], frozenset[str]]:
    """Return the newest revisions, and all known revisions."""
    scripts = ScriptDirectory(str(SCRIPTS))
    return frozenset(scripts.get_heads()), frozenset(script.revision for script in scripts.walk_revisions())


def schema_state(connection: sa.Connection) -> SchemaState:
    """Compare the revision of the database with the newest known revision."""
    current = set(MigrationContext.configure(connection).get_current_heads())
    heads, known = _revisions()
    if not current:
        return SchemaState.MISSING
    if current == heads:
        return SchemaState.CURRENT
    return SchemaState.OLDER if current <= known else SchemaState.NEWER
