"""Users whom an operator creates, disables and deletes."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import BadRequest, Conflict, NotFound
from bloxserver.models.tables import FlowStatus, Tier
from bloxserver.services.user_accounts import create_user, disable_user, find_user
from tests import factories


async def test_created_user_has_a_local_identity(session: AsyncSession) -> None:
    user = await create_user(session, "ada@example.com", Tier.PRO, "Ada")
    assert user.clerk_id.startswith("local:")
    assert (user.email, user.tier, user.name, user.disabled_at) == ("ada@example.com", Tier.PRO, "Ada", None)


async def test_user_is_found_by_id_identity_and_email(session: AsyncSession) -> None:
    user = await create_user(session, "ada@example.com", Tier.FREE)
    await create_user(session, "bob@example.com", Tier.FREE)
    for reference in (str(user.id), user.clerk_id, user.email):
        assert await find_user(session, reference) is user
    with pytest.raises(NotFound, match="User not found"):
        await find_user(session, "eve@example.com")


async def test_email_of_several_users_is_ambiguous(session: AsyncSession) -> None:
    """Identity providers may send the same email for several users, who are never linked by it."""
    users = [await factories.create_user(session, email="ada@example.com") for _ in range(2)]
    with pytest.raises(Conflict) as raised:
        await find_user(session, "ada@example.com")
    assert all(str(user.id) in raised.value.message for user in users)


async def test_email_of_another_user_does_not_hide_an_id_or_identity(session: AsyncSession) -> None:
    user = await factories.create_user(session, clerk_id="user_ada")
    for reference in (str(user.id), "user_ada"):
        await factories.create_user(session, email=reference)
        assert await find_user(session, reference) is user


async def test_second_user_with_the_same_email_is_refused(session: AsyncSession) -> None:
    await create_user(session, "ada@example.com", Tier.FREE)
    with pytest.raises(Conflict, match="exists"):
        await create_user(session, "ada@example.com", Tier.FREE)


@pytest.mark.parametrize("email", ["", "ada", "a da@example.com", "ada@\udcff", "ada@\0", "@" * 321])
async def test_invalid_email_is_refused(session: AsyncSession, email: str) -> None:
    with pytest.raises(BadRequest, match="Not an email address"):
        await create_user(session, email, Tier.FREE)


async def test_disabling_a_user_stops_their_flows(session: AsyncSession) -> None:
    user, other = await factories.create_user(session), await factories.create_user(session)
    states = (FlowStatus.RUNNING, FlowStatus.STARTING, FlowStatus.STOPPED, FlowStatus.ERROR)
    flows = [await factories.create_flow(session, user, status=status) for status in states]
    theirs = await factories.create_flow(session, other, status=FlowStatus.RUNNING)
    assert await disable_user(session, user) == 2
    await session.commit()
    for flow in (*flows, theirs):
        await session.refresh(flow)
    stopping = FlowStatus.STOPPING
    assert [flow.status for flow in flows] == [stopping, stopping, FlowStatus.STOPPED, FlowStatus.ERROR]
    assert theirs.status is FlowStatus.RUNNING
    first = user.disabled_at
    assert first is not None
    assert await disable_user(session, user) == 0
    assert user.disabled_at == first
