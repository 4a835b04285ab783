"""Whom a request is for, and how the one statement of a hot route reads them.

A hot route executes one statement. It joins the requester's row, so that no statement before it has to read the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa

from bloxserver.models.single_statements import Statements
from bloxserver.models.tables import FlowRecord, UserRecord

USER_ID, FLOW_ID = (sa.bindparam(name, type_=UserRecord.__table__.c.id.type) for name in ("user_id", "flow_id"))
_users, _flows = UserRecord.__table__, FlowRecord.__table__

REQUESTER_COLUMNS = (
    _users.c.id.label("requester_id"),
    _users.c.clerk_id.label("requester_clerk_id"),
    _users.c.tier.label("requester_tier"),
    _users.c.limits.label("requester_limits"),
    _users.c.disabled_at.label("requester_disabled_at"),
    _users.c.deleted_at.label("requester_deleted_at"),
)
"""The columns that `Requester.confirm` reads. All are null if the user has no row."""

REQUESTER = sa.select(sa.literal_column("1").label("one")).subquery("request").outerjoin(_users, _users.c.id == USER_ID)
"""The FROM clause of a statement about a requester: one row, whether the user has a row or not."""


def owned_by(user_id: UUID | sa.BindParameter[UUID], flows: Any = FlowRecord) -> sa.ColumnElement[bool]:
    """The condition that a flow belongs to the user and was not deleted. Every statement for a user starts from it.

    `flows` has the columns of flows.
    """
    return sa.and_(flows.user_id == user_id, flows.deleted_at.is_(None))


REQUESTER_AND_FLOW = REQUESTER.outerjoin(_flows, sa.and_(_flows.c.id == FLOW_ID, owned_by(USER_ID, _flows.c)))
"""The same with the flow, which is null unless it is the requester's and was not deleted."""


class Requester(Protocol):
    """The user who sent the request."""

    @property
    def id(self) -> UUID: ...

    def confirm(self, row: sa.Row[Any]) -> bool:
        """Take tier and limits from a row with `REQUESTER_COLUMNS`, and count the request.

        Returns false if the statement was about another user. Raises `RateLimited`.
        """

    async def read(self) -> None:
        """Read or create the user, who then has another id, and count the request. Raises `RateLimited`."""


async def read_for(
    requester: Requester, session: Statements, statement: sa.Executable, parameters: Mapping[str, Any]
) -> Sequence[sa.Row[Any]]:
    """The rows of a statement that joins `REQUESTER`, and selects `REQUESTER_COLUMNS` in the first row.

    The statement is executed again if the requester was not known. Raises `RateLimited`.
    """
    rows = (await session.execute(statement, {**parameters, "user_id": requester.id})).all()
    if not requester.confirm(rows[0]):
        await requester.read()
        rows = (await session.execute(statement, {**parameters, "user_id": requester.id})).all()
    return rows
