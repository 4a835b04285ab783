from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Unauthorized
from bloxserver.models.database import begin_writing
from bloxserver.models.enums import AuditAction, Tier
from bloxserver.models.tables import UserRecord
from bloxserver.models.upsert import insert_into
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.users import is_deleted, read_user_by_clerk_id
from bloxserver.services import audit
from bloxserver.settings import get_settings

MAX_EMAIL_LENGTH = 320
MAX_NAME_LENGTH = 255
MAX_URL_LENGTH = 2048
DEV_CLERK_ID = "dev_user_001"
DEV_CLAIMS: dict[str, Any] = {"sub": DEV_CLERK_ID, "dev": True}


class AccountDeleted(Unauthorized):
    """The user was deleted. A token that is still valid does not create them again."""

    def __init__(self) -> None:
        super().__init__("account_deleted", "The account was deleted")


async def user_of_claims(session: AsyncSession, claims: dict[str, Any]) -> UserRecord:
    """The user of a verified token. The first token creates the user, also under concurrency.

    Raises `AccountDeleted` if a user with this identity was deleted, and their row too.
    """
    clerk_id = claims["sub"]
    user = await read_user_by_clerk_id(session, clerk_id)
    if user is not None:
        return user
    if await is_deleted(session, clerk_id):
        raise AccountDeleted
    await begin_writing(session)
    await insert_user(session, clerk_id, _profile(claims))
    user = await read_user_by_clerk_id(session, clerk_id)
    if user is None:
        raise AccountDeleted
    return user


async def insert_user(session: AsyncSession, clerk_id: str, profile: Mapping[str, Any]) -> bool:
    """Insert a user. Returns False if a user with this identity exists or was deleted."""
    created = await session.scalar(
        insert_into(session, UserRecord)
        .values(clerk_id=clerk_id, **profile)
        .on_conflict_do_nothing(index_elements=[UserRecord.clerk_id])
        .returning(UserRecord.id)
    )
    if created is None:
        return False
    # A deletion locks the identity by a row in `users` too, so this statement sees the tombstone of one that was first.
    if await is_deleted(session, clerk_id):
        await session.execute(sa.delete(UserRecord).where(UserRecord.id == created))
        return False
    await audit.record(session, AuditAction.USER_CREATED, created, created, after={"tier": profile["tier"]})
    return True


async def lock_plan(session: AsyncSession, user_id: UUID) -> Plan:
    """The limits of a user, whose row is locked until the transaction ends, so that limits are exact.

    Raises `AccountDeleted` if the user was deleted since the sign-in.
    """
    user = sa.select(UserRecord.tier, UserRecord.limits, UserRecord.deleted_at).where(UserRecord.id == user_id)
    row = (await session.execute(user.with_for_update(key_share=True))).first()
    if row is None:
        return get_plan(Tier.FREE)
    if row.deleted_at is not None:
        raise AccountDeleted
    return get_plan(row.tier or Tier.FREE, row.limits)


def unknown_email(clerk_id: str) -> str:
    """What stands for the email of a user who has none."""
    return f"{clerk_id}@unknown"


def _profile(claims: dict[str, Any]) -> dict[str, Any]:
    if claims == DEV_CLAIMS:  # All claims are compared, because a real token may also have the subject `dev`.
        return {"email": "dev@localhost", "name": "Dev User", "tier": Tier.PRO}
    return {
        "email": profile_text(claims.get("email"), MAX_EMAIL_LENGTH) or unknown_email(claims["sub"]),
        "name": profile_text(claims.get("name"), MAX_NAME_LENGTH),
        "avatar_url": profile_text(claims.get("image_url"), MAX_URL_LENGTH),
        "tier": Tier(get_settings().default_tier),
        **_issuer_and_subject(claims),
    }


def _issuer_and_subject(claims: dict[str, Any]) -> dict[str, str]:
    """Those of a token of an OpenID Connect provider. Clerk's tokens cannot have such a subject."""
    if not claims["sub"].startswith("oidc:"):
        return {}
    return {name: claims["oidc"][name] for name in ("issuer", "subject")}


def profile_text(claim: object, limit: int) -> str | None:
    """The claim cut to `limit`, or None if it is not storable text. An invalid profile must not prevent a login."""
    if not isinstance(claim, str):
        return None
    storable = claim.replace("\0", "").encode(errors="ignore").decode()
    return storable[:limit] or None
