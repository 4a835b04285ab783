"""The declarative base: constraint names that migrations rely on, and columns and indexes that tables share."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.schema import CreateIndex

from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.types import UtcDateTime, database_now, database_uuid

_CONDITION = "bloxserver_condition"


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime(), uuid.UUID: sa.Uuid()}


Id = Annotated[uuid.UUID, mapped_column(primary_key=True, default=new_id, server_default=database_uuid())]
CreatedAt = Annotated[datetime, mapped_column(default=now, server_default=database_now())]
UpdatedAt = Annotated[datetime, mapped_column(default=now, onupdate=now, server_default=database_now())]
Counter = Annotated[int, mapped_column(sa.BigInteger, default=0, server_default="0")]


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    """An index of the rows that meet the condition."""
    # The arguments `sqlite_where` and `postgresql_where` would import both dialects, of which a process needs one.
    return sa.Index(name, *columns, unique=unique, info={_CONDITION: where})


@compiles(CreateIndex)
def _(create: Any, compiler: Any, **options: Any) -> str:
    statement: str = compiler.visit_create_index(create, **options)
    condition = create.element.info.get(_CONDITION)
    return statement if condition is None else f"{statement} WHERE {condition}"
