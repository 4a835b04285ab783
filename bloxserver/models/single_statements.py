"""Statements that read, each with a connection of its own and without a session.

A session takes longer to open, use and close than a statement of a hot route takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.util import greenlet_spawn

from bloxserver.models.availability import Availability


class Rows(Protocol):
    """The result of a statement."""

    def all(self) -> Sequence[sa.Row[Any]]: ...


class Statements(Protocol):
    """What executes a statement that reads: an `AsyncSession` or `SingleStatements`."""

    async def execute(self, statement: sa.Executable, parameters: Mapping[str, Any], /) -> Rows: ...

    def get_bind(self) -> sa.Engine | sa.Connection: ...


class ReadRows:
    """Rows that have been read."""

    def __init__(self, rows: Sequence[sa.Row[Any]]) -> None:
        self._rows = rows

    def all(self) -> Sequence[sa.Row[Any]]:
        return self._rows


class SingleStatements:
    """Executes statements on an engine for reading. No transaction includes two of them."""

    def __init__(self, engine: sa.Engine, availability: Availability) -> None:
        self._engine = engine
        self._availability = availability

    async def execute(self, statement: sa.Executable, parameters: Mapping[str, Any], /) -> ReadRows:
        try:
            rows: ReadRows = await greenlet_spawn(self._read, statement, parameters)
        except BaseException as error:
            self._availability.failed(error)
            raise
        self._availability.succeeded()
        return rows

    def get_bind(self) -> sa.Engine:
        return self._engine

    def _read(self, statement: sa.Executable, parameters: Mapping[str, Any]) -> ReadRows:
        with self._engine.connect() as connection:
            return ReadRows(connection.execute(statement, parameters).all())
