"""Reads of users."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.queries.users import read_user_by_clerk_id
from tests.factories import create_user


async def test_user_is_found_by_their_clerk_id(session: AsyncSession) -> None:
    await create_user(session)
    user = await create_user(session, clerk_id="user_ada")
    found = await read_user_by_clerk_id(session, "user_ada")
    assert found is not None
    assert found.id == user.id


async def test_unknown_clerk_id_returns_none(session: AsyncSession) -> None:
    await create_user(session, clerk_id="user_ada")
    assert await read_user_by_clerk_id(session, "user_bob") is None


async def test_clerk_ids_that_differ_in_case_are_different_users(session: AsyncSession) -> None:
    lower = await create_user(session, clerk_id="user_ada")
    upper = await create_user(session, clerk_id="user_ADA")
    found = [await read_user_by_clerk_id(session, clerk_id) for clerk_id in ("user_ada", "user_ADA", "User_Ada")]
    assert [user and user.id for user in found] == [lower.id, upper.id, None]
