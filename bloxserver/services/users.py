from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import begin_writing
from bloxserver.models.enums import AuditAction, Tier
from bloxserver.models.tables import UserRecord
from bloxserver.models.upsert import insert_into
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.users import read_user_by_clerk_id
from bloxserver.services import audit
from bloxserver.settings import get_settings

DEV_CLERK_ID = "dev_user_001"
DEV_CLAIMS: dict[str, Any] = {"sub": DEV_CLERK_ID, "dev": True}


async def user_of_claims(session: AsyncSession, claims: dict[str, Any]) -> UserRecord:
    """The user of a verified token. The first token creates the user, also under concurrency."""
    clerk_id = claims["sub"]
    user = await read_user_by_clerk_id(session, clerk_id)
    if user is not None:
        return user
    await begin_writing(session)
    profile = _profile(claims)
    created = await session.scalar(
        insert_into(session, UserRecord)
        .values(clerk_id=clerk_id, **profile)
        .on_conflict_do_nothing(index_elements=[UserRecord.clerk_id])
        .returning(UserRecord.id)
    )
    if created is not None:
        await audit.record(session, AuditAction.USER_CREATED, created, created, after={"tier": profile["tier"]})
    user = await read_user_by_clerk_id(session, clerk_id)
    if user is None:
        raise RuntimeError("the user row vanished between insert and select")
    return user


async def lock_plan(session: AsyncSession, user_id: UUID) -> Plan:
    """The limits of a user, whose row is locked until the transaction ends, so that limits are exact."""
    user = sa.select(UserRecord.tier, UserRecord.limits).where(UserRecord.id == user_id)
    row = (await session.execute(user.with_for_update(key_share=True))).first()
    return get_plan(Tier.FREE) if row is None else get_plan(row.tier or Tier.FREE, row.limits)


def _profile(claims: dict[str, Any]) -> dict[str, Any]:
    if claims == DEV_CLAIMS:  # All claims are compared, because a real token may also have the subject `dev`.
        return {"email": "dev@localhost", "name": "Dev User", "tier": Tier.PRO}
    return {
        "email": _text(claims.get("email"), 320) or f"{claims['sub']}@unknown",
        "name": _text(claims.get("name"), 255),
        "avatar_url": _text(claims.get("image_url"), 2048),
        "tier": Tier(get_settings().default_tier),
        **_issuer_and_subject(claims),
    }


def _issuer_and_subject(claims: dict[str, Any]) -> dict[str, str]:
    """Those of a token of an OpenID Connect provider. Clerk's tokens cannot have such a subject."""
    if not claims["sub"].startswith("oidc:"):
        return {}
    return {name: claims["oidc"][name] for name in ("issuer", "subject")}


def _text(claim: object, limit: int) -> str | None:
    """The claim cut to `limit`, or None if it is not storable text. An invalid profile must not prevent a login."""
    if not isinstance(claim, str):
        return None
    storable = claim.replace("\0", "").encode(errors="ignore").decode()
    return storable[:limit] or None
