"""Runs migrations, and checks whether this version can use the schema.

Alembic is imported only to migrate: most starts find a schema that is current.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from bloxserver.errors import SettingsError
from bloxserver.models.base import Base

if TYPE_CHECKING:
    from alembic.config import Config


def find_scripts(package: Path) -> Path:
    """Return the folder of migration scripts: `migrations` in the package (wheel), or next to it (checkout).

    A folder is used only if it has an `env.py`, because git leaves a `__pycache__` in place of removed scripts.
    """
    installed, checkout = package / "migrations", package.parent / "migrations"
    return checkout if not (installed / "env.py").is_file() and checkout.is_dir() else installed


SCRIPTS = find_scripts(Path(__file__).parents[1])
REVISION_TABLE = "alembic_version"


class SchemaState(StrEnum):
    CURRENT = "current"
    NEWER = "newer"
    """The revision is unknown: a newer version has migrated the database, for example in a rolling deployment."""
    OLDER = "older"
    MISSING = "missing"
    """There is no revision: the database is empty, or its tables were created without migrations."""


def _config(connection: sa.Connection) -> Config:
    from alembic.config import Config

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
    if state in (SchemaState.NEWER, SchemaState.CURRENT) and revision == "head":
        return
    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    if state is SchemaState.MISSING and sa.inspect(connection).has_table("flows"):
        if compare_metadata(MigrationContext.configure(connection), Base.metadata):
            raise SettingsError(["DATABASE_URL: the database has tables that bloxserver did not create"])
        command.stamp(_config(connection), "head")
    elif state is not SchemaState.NEWER:
        command.upgrade(_config(connection), revision)


def downgrade(connection: sa.Connection, revision: str) -> None:
    from alembic import command

    command.downgrade(_config(connection), revision)


def check(connection: sa.Connection) -> None:
    """Raise `alembic.util.CommandError` if models and migrations differ."""
    from alembic import command

    command.check(_config(connection))


@lru_cache
def known_revisions() -> tuple[str, ...]:
    """Return all revisions in their order. They are in the names of the scripts: `DATE_REVISION_TITLE.py`."""
    return tuple(sorted(script.name.split("_")[1] for script in (SCRIPTS / "versions").glob("*_*_*.py")))


def schema_state(connection: sa.Connection) -> SchemaState:
    """Compare the revision of the database with the newest known revision."""
    current = _revision_of(connection)
    if current is None:
        return SchemaState.MISSING
    if current == known_revisions()[-1]:
        return SchemaState.CURRENT
    return SchemaState.OLDER if current in known_revisions() else SchemaState.NEWER


def _revision_of(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(REVISION_TABLE):
        return None
    revision: str | None = connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(REVISION_TABLE)))
    return revision
