from __future__ import annotations

from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.tables import UserRecord
from bloxserver.queries.requesters import REQUESTER_AND_FLOW, REQUESTER_COLUMNS, read_for
from tests.factories import create_flow, create_user

STATEMENT = sa.select(*REQUESTER_COLUMNS, sa.literal_column("flows.id", sa.Uuid()).label("flow_id")).select_from(
    REQUESTER_AND_FLOW
)


class Moved:
    """A requester who has another id than was known."""

    def __init__(self, known: UUID, user: UserRecord) -> None:
        self.id = known
        self._user = user

    def confirm(self, row: sa.Row[tuple[object, ...]]) -> bool:
        return self.id == self._user.id

    async def read(self) -> None:
        self.id = self._user.id


async def test_statement_has_one_row_for_any_user_and_flow(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    deleted = await create_flow(session, user, deleted_at=now())
    foreign = await create_flow(session, await create_user(session))
    for user_id, flow_id, found in (
        (user.id, flow.id, (user.id, flow.id)),
        (user.id, deleted.id, (user.id, None)),
        (user.id, foreign.id, (user.id, None)),
        (uuid4(), uuid4(), (None, None)),
    ):
        rows = (await session.execute(STATEMENT, {"user_id": user_id, "flow_id": flow_id})).all()
        assert [(row.requester_id, row.flow_id) for row in rows] == [found]


async def test_statement_is_executed_again_for_a_requester_with_another_id(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user)
    rows = await read_for(Moved(uuid4(), user), session, STATEMENT, {"flow_id": flow.id})
    assert [(row.requester_id, row.flow_id) for row in rows] == [(user.id, flow.id)]
