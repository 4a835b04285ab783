"""Rows from parameters that are arrays: PostgreSQL writes many rows in one statement, so that triggers run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

Kind = sa.types.TypeEngine[Any]


def array_rows(name: str, columns: Mapping[str, Kind]) -> sa.TableValuedAlias:
    """Return rows with these columns. The array of a column is the parameter `{name}_{column}`."""
    # With one dimension, a list in a JSON column is a value and not a nested array.
    arrays = [
        sa.bindparam(f"{name}_{column}", type_=sa.ARRAY(_type_in_array(kind), dimensions=1))
        for column, kind in columns.items()
    ]
    return sa.func.unnest(*arrays).table_valued(*columns).render_derived(name=name)


def arrays_of(name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the parameters of `array_rows` with the values of these rows."""
    return {f"{name}_{column}": [row[column] for row in rows] for column in columns}


def _type_in_array(kind: Kind) -> Kind:
    # Parameters are cast to their type, and a cast to `varchar(n)` would cut a longer text.
    return sa.Text() if isinstance(kind, sa.String) and not isinstance(kind, sa.Enum) else kind
