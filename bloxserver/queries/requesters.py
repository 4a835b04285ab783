"""Whom a request is for, and what the statement of a hot route reads about them.

A hot route executes one statement. It joins the requester's row, so that no statement before it has to read the row:

    row = (await session.execute(STATEMENT, {"user_id": requester.id, …})).one()
    requester.confirm(row)
    if row.flow_id is None:
        raise NotFound("Flow")
"""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa

from bloxserver.models.tables import FlowRecord, UserRecord

_users_table, _flows_table = UserRecord.__table__, FlowRecord.__table__
_users, _flows = _users_table.c, _flows_table.c

REQUESTER_COLUMNS = (
    _users.id.label("requester_id"),
    _users.tier.label("requester_tier"),
    _users.limits.label("requester_limits"),
)
"""The columns that `Requester.confirm` reads. All are null if the user has no row, so they must be outer-joined."""


class Requester(Protocol):
    """The user who sent the request."""

    @property
    def id(self) -> UUID: ...

    def confirm(self, row: sa.Row[Any]) -> None:
        """Take tier and limits from a row with `REQUESTER_COLUMNS`, and count the request.

        Raises `UnknownUser` if the row shows that the user does not exist any more, and `RateLimited`. The route must
        not return anything about the user's data before this call.
        """


_one = sa.select(sa.literal_column("1").label("one")).subquery("request")

REQUESTER = _one.outerjoin(_users_table, _users.id == sa.bindparam("user_id", type_=_users.id.type))
"""The FROM clause of a statement about a requester: one row, whether the user has a row or not."""

REQUESTER_AND_FLOW = REQUESTER.outerjoin(
    _flows_table,
    sa.and_(
        _flows.id == sa.bindparam("flow_id", type_=_flows.id.type),
        _flows.user_id == sa.bindparam("user_id", type_=_flows.user_id.type),
        _flows.deleted_at.is_(None),
    ),
)
"""The same with the flow, outer-joined if it is the requester's and was not deleted. Select `flows.id` to know."""
