"""Tables that triggers of the database maintain, so that rows of every program are counted.

`create_all` and the migrations create the triggers from the same statements.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from bloxserver.models.base import Base

Statements = Callable[[str], Sequence[str]]
"""Returns the statements for a dialect, `sqlite` or `postgresql`."""


def execute_statements(connection: sa.Connection, statements: Statements) -> None:
    for statement in statements(connection.dialect.name):
        connection.exec_driver_sql(statement)


def create_with(table: sa.FromClause, statements: Statements) -> None:
    """Execute the statements whenever `create_all` creates the table, after all other tables."""

    def after_create(
        metadata: sa.MetaData, connection: sa.Connection, *, tables: Collection[sa.Table], **options: Any
    ) -> None:
        if table in tables:
            execute_statements(connection, statements)

    event.listen(Base.metadata, "after_create", after_create)
