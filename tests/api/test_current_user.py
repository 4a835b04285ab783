"""Users whom the statement of a hot route reads: every change in the database applies to the next request."""

from __future__ import annotations

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.api import current_user
from bloxserver.ids import new_id
from bloxserver.models.tables import FlowRecord, UserRecord
from tests.api.contract import API, assert_problem
from tests.factories import create_flow
from tests.statements import count_statements


async def test_user_is_read_by_the_statement_of_the_route(
    client: httpx.AsyncClient, session: AsyncSession, database_engine: AsyncEngine, dev_user: UserRecord
) -> None:
    flow = await create_flow(session, dev_user)
    await client.get(f"{API}/me")
    with count_statements(database_engine) as statements:
        response = await client.get(f"{API}/flows/{flow.id}")
    assert response.json()["userId"] == str(dev_user.id)
    assert len(statements) == 1


@pytest.mark.parametrize("path", ["flows", "flows/{flow}"])
async def test_user_who_was_deleted_is_created_again(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, path: str
) -> None:
    flow = await create_flow(session, dev_user)
    await client.get(f"{API}/me")
    await session.execute(sa.delete(FlowRecord))
    await session.execute(sa.delete(UserRecord))
    await session.commit()
    response = await client.get(f"{API}/{path.replace('{flow}', str(flow.id))}")
    assert response.status_code == (200 if path == "flows" else 404)
    assert (await client.get(f"{API}/me")).json()["id"] != str(dev_user.id)


async def test_id_of_a_user_whose_subject_has_changed_is_not_used(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flow = await create_flow(session, dev_user)
    await client.get(f"{API}/me")
    await session.execute(sa.update(UserRecord).values(clerk_id="another_subject"))
    await session.commit()
    assert_problem(await client.get(f"{API}/flows/{flow.id}"), 404, "flow_not_found", "Flow not found")
    assert (await client.get(f"{API}/flows")).json()["total"] == 0


async def test_number_of_known_ids_is_bounded(
    client: httpx.AsyncClient, dev_user: UserRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_user, "MAX_KNOWN_IDS", 2)
    monkeypatch.setattr(current_user, "_known_ids", {"one": new_id(), "two": new_id()})
    await client.get(f"{API}/me")
    assert list(current_user._known_ids) == ["two", dev_user.clerk_id]
