"""The schema's revision: bring it up to date, and tell whether this version of the code can serve it."""

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
    """The folder of migration scripts: `migrations` in the package, as in a wheel, else beside it, as in a checkout.

    A folder counts only if it has an `env.py`: git leaves a `__pycache__` where scripts used to be.
    """
    installed, checkout = package / "migrations", package.parent / "migrations"
    return checkout if not (installed / "env.py").is_file() and checkout.is_dir() else installed


SCRIPTS = find_scripts(Path(__file__).parents[1])


class SchemaState(StrEnum):
    CURRENT = "current"
    NEWER = "newer"
    """A revision that this code does not know: a later version has migrated, as in a rolling deploy."""
    OLDER = "older"
    MISSING = "missing"
    """No revision at all: an empty database, or tables that were made without migrations."""


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Migrate up to `revision`; does nothing where the schema is there already, or is newer.

    Tables that were made from the models, without migrations, are taken as they are. Raises `SettingsError` for
    other tables of these names: they are not ours to change.
    """
    state = schema_state(connection)
    if state is SchemaState.MISSING and sa.inspect(connection).has_table("flows"):
        if compare_metadata(MigrationContext.configure(connection), Base.metadata):
            raise SettingsError(["DATABASE_URL: the database has tables that bloxserver did not make"])
        command.stamp(_config(connection), "head")
    elif state is not SchemaState.NEWER:
        command.upgrade(_config(connection), revision)


def downgrade(connection: sa.Connection, revision: str) -> None:
    command.downgrade(_config(connection), revision)


def check(connection: sa.Connection) -> None:
    """Raise `alembic.util.CommandError` when models and migrations differ."""
    command.check(_config(connection))


@lru_cache
def _revisions() -> tuple[frozenset[str], frozenset[str]]:
    """The newest revisions and all revisions that this code knows."""
    scripts = ScriptDirectory(str(SCRIPTS))
    return frozenset(scripts.get_heads()), frozenset(script.revision for script in scripts.walk_revisions())


def schema_state(connection: sa.Connection) -> SchemaState:
    """How the database's revision stands to the newest one that this code knows."""
    current = set(MigrationContext.configure(connection).get_current_heads())
    heads, known = _revisions()
    if not current:
        return SchemaState.MISSING
    if current == heads:
        return SchemaState.CURRENT
    return SchemaState.OLDER if current <= known else SchemaState.NEWER
