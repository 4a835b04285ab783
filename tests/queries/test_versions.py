"""Reads of versions."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.tables import FlowRecord, FlowVersionRecord, UserRecord
from bloxserver.queries.paging import PageRequest
from bloxserver.queries.versions import read_version, read_versions
from tests.factories import create_flow, create_user

PAGE = PageRequest(1, 10)


async def create_versions(session: AsyncSession, flow: FlowRecord, count: int) -> list[FlowVersionRecord]:
    versions = [
        FlowVersionRecord(flow_id=flow.id, number=number, organism_yaml=f"text {number}", canvas_state={"n": number})
        for number in range(1, count + 1)
    ]
    session.add_all(versions)
    await session.commit()
    return versions


async def test_versions_are_listed_in_pages_from_the_newest_without_texts(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user)
    await create_versions(session, flow, 3)
    await create_versions(session, await create_flow(session, user), 5)
    first = await read_versions(session, user.id, flow.id, PageRequest(1, 2))
    second = await read_versions(session, user.id, flow.id, PageRequest(2, 2))
    assert [row.number for row in first.items] == [3, 2]
    assert [row.number for row in second.items] == [1]
    assert (first.total, first.has_more, second.has_more) == (3, True, False)
    assert set(first.items[0]._mapping.keys()) == {"number", "created_at", "active", "latest"}


async def test_active_and_latest_version_are_marked(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user, latest_version=3)
    versions = await create_versions(session, flow, 3)
    flow.active_version_id = versions[1].id
    await session.commit()
    rows = (await read_versions(session, user.id, flow.id, PAGE)).items
    assert [(row.number, row.active, row.latest) for row in rows] == [
        (3, False, True),
        (2, True, False),
        (1, False, False),
    ]
    version = await read_version(session, user.id, flow.id, 2)
    assert (version.active, version.latest) == (True, False)


async def test_flow_that_was_never_started_has_no_active_version(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    await create_versions(session, flow, 1)
    [row] = (await read_versions(session, user.id, flow.id, PAGE)).items
    assert (row.active, row.latest) == (False, False)


async def test_version_has_the_texts_of_its_number(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    await create_versions(session, flow, 2)
    version = await read_version(session, user.id, flow.id, 1)
    assert (version.number, version.organism_yaml, version.canvas_state) == (1, "text 1", {"n": 1})


async def test_versions_are_found_only_for_the_owner_of_the_flow(session: AsyncSession, user: UserRecord) -> None:
    flow, other = await create_flow(session, user), await create_user(session)
    deleted = await create_flow(session, user, deleted_at=now())
    for owned in (flow, deleted):
        await create_versions(session, owned, 1)
    for user_id, flow_id in ((other.id, flow.id), (user.id, deleted.id), (user.id, uuid4())):
        with pytest.raises(NotFound) as error:
            await read_versions(session, user_id, flow_id, PAGE)
        assert (error.value.code, error.value.status) == ("flow_not_found", 404)
        with pytest.raises(NotFound) as error:
            await read_version(session, user_id, flow_id, 1)
        assert (error.value.code, error.value.status) == ("version_not_found", 404)


async def test_unknown_version_is_not_found(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    await create_versions(session, flow, 1)
    for number in (0, 2):
        with pytest.raises(NotFound, match="Version not found"):
            await read_version(session, user.id, flow.id, number)


async def test_flow_without_versions_has_an_empty_page(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    page = await read_versions(session, user.id, flow.id, PAGE)
    assert (list(page.items), page.total) == ([], 0)
