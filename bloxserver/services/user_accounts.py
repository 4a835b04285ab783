"""Users whom an operator creates and changes from the command line."""

from __future__ import annotations

from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Conflict, NotFound
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import FlowStatus, Tier
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.users import find_users
from bloxserver.services.flows import transition_flow
from bloxserver.storable import storable_text

MAX_EMAIL_LENGTH = 320
MAX_NAME_LENGTH = 255
LOCAL_PREFIX = "local:"
"""The beginning of the identity of users without an identity provider."""


async def find_user(session: AsyncSession, reference: str) -> UserRecord:
    """The user with this id, identity or email. Raises `NotFound`, and `Conflict` if several have the email."""
    found = await find_users(session, reference)
    if not found:
        raise NotFound("User")
    if len(found) > 1:
        ids = ", ".join(str(user.id) for user in found)
        raise Conflict("user_ambiguous", f"Several users have this email. Use one of their ids: {ids}")
    return found[0]


async def create_user(session: AsyncSession, email: str, tier: Tier, name: str | None = None) -> UserRecord:
    """Create a user, who can sign in with API keys only. Raises `Conflict` if a user has the email."""
    if "@" not in email or len(email) > MAX_EMAIL_LENGTH or " " in email or not email.isprintable():
        raise BadRequest("invalid_email", "Not an email address")
    if found := await find_users(session, email):
        raise Conflict("user_exists", f"A user with this email exists: {found[0].id}")
    user = UserRecord(
        clerk_id=f"{LOCAL_PREFIX}{uuid4()}", email=email, name=name and storable_text(name)[:MAX_NAME_LENGTH], tier=tier
    )
    session.add(user)
    await session.flush()
    return user


async def disable_user(session: AsyncSession, user: UserRecord) -> int:
    """Refuse the user's requests from now on, and stop their flows. Returns the number of flows that are stopping."""
    user.disabled_at = user.disabled_at or now()
    active = (FlowStatus.STARTING, FlowStatus.RUNNING)
    flows = await session.scalars(
        sa.select(FlowRecord.id).where(owned_by(user.id), FlowRecord.status.in_(active)).order_by(FlowRecord.id)
    )
    stopped = [
        flow_id
        for flow_id in flows.all()
        if await transition_flow(session, flow_id, FlowStatus.STOPPING, stop_requested_at=now())
    ]
    wake_engine_after_commit(session, WakeReason.FLOW)
    return len(stopped)


async def delete_user(session: AsyncSession, user_id: UUID) -> None:
    """Delete a user whose flows are deleted, with the rest of their data. Raises `Conflict` if a flow has rows left."""
    if await session.scalar(sa.select(FlowRecord.id).where(FlowRecord.user_id == user_id).limit(1)) is not None:
        raise Conflict("flows_left", "The user still has flows: repeat the command")
    await session.execute(sa.delete(UserRecord).where(UserRecord.id == user_id))
