"""Reads of the variables of flows."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.tables import UserRecord
from bloxserver.queries.flow_vars import read_vars
from bloxserver.services.flow_vars import set_vars
from tests.factories import create_flow, create_user


async def test_variables_are_those_that_were_set_last(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    assert await read_vars(session, user.id, flow.id) == {}
    await set_vars(session, user.id, flow.id, {"a": 1})
    await set_vars(session, user.id, flow.id, {"b": {"c": [None, "é"]}})
    assert await read_vars(session, user.id, flow.id) == {"b": {"c": [None, "é"]}}


async def test_variables_of_another_user_are_not_found(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, await create_user(session))
    for flow_id in (flow.id, uuid4()):
        with pytest.raises(NotFound):
            await read_vars(session, user.id, flow_id)
