"""Users whom an operator creates and changes from the command line."""

from __future__ import annotations

from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Conflict, NotFound
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.enums import AuditAction, FlowStatus, Tier, TierSource
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.running_flows import ACTIVE
from bloxserver.queries.users import find_users
from bloxserver.services import audit
from bloxserver.services.downgrades import stop_flows_beyond
from bloxserver.services.flows import record_request, transition_flow
from bloxserver.services.users import MAX_EMAIL_LENGTH, MAX_NAME_LENGTH
from bloxserver.storable import storable_text

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
    await audit.record(session, AuditAction.USER_CREATED, user.id, user.id, after={"tier": tier})
    return user


async def set_tier(session: AsyncSession, user: UserRecord, tier: Tier, *, is_fixed: bool = True) -> None:
    """Change the user's plan. If `is_fixed`, subscriptions do not change it. A smaller plan may stop flows."""
    await session.refresh(user, with_for_update={"key_share": True})
    await stop_flows_beyond(session, user, tier)
    before, after = audit.difference({"tier": user.tier}, {"tier": tier})
    user.tier, user.tier_source = tier, TierSource.OPERATOR if is_fixed else None
    if after:
        await audit.record(session, AuditAction.USER_TIER_CHANGED, user.id, user.id, before=before, after=after)


async def enable_user(session: AsyncSession, user: UserRecord) -> None:
    """Accept the user's requests again."""
    if user.disabled_at is not None:
        user.disabled_at = None
        await audit.record(session, AuditAction.USER_ENABLED, user.id, user.id)


async def disable_user(session: AsyncSession, user: UserRecord) -> int:
    """Refuse the user's requests from now on, and stop their flows. Returns the number of flows that are stopping."""
    if user.disabled_at is None:
        user.disabled_at = now()
        await audit.record(session, AuditAction.USER_DISABLED, user.id, user.id)
    flows = await session.execute(
        sa.select(FlowRecord.id, FlowRecord.status)
        .where(owned_by(user.id), FlowRecord.status.in_(ACTIVE))
        .order_by(FlowRecord.id)
    )
    stopped = 0
    for flow_id, status in flows.all():
        if await transition_flow(session, flow_id, FlowStatus.STOPPING, stop_requested_at=now()):
            await record_request(session, user.id, flow_id, status, FlowStatus.STOPPING)
            stopped += 1
    wake_engine_after_commit(session, WakeReason.FLOW)
    return stopped
