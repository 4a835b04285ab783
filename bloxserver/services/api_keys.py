"""API keys: secrets with which programs call the API as a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api_key_format import hash_of, hint_of, new_key
from bloxserver.clock import iso_utc, now
from bloxserver.errors import Forbidden, LimitReached, NotFound, Unprocessable
from bloxserver.models.database import begin_writing
from bloxserver.models.enums import AuditAction, Scope
from bloxserver.models.tables import ApiKeyRecord, FlowRecord
from bloxserver.queries.api_keys import SHOWN, KeyAccess
from bloxserver.queries.requesters import owned_by
from bloxserver.services import audit
from bloxserver.services.users import lock_plan

USE_INTERVAL = timedelta(minutes=1)
"""How often the last use of a key is written."""


@dataclass(frozen=True)
class NewKey:
    """An API key to create."""

    name: str
    scopes: Sequence[Scope]
    flow_ids: Sequence[UUID] | None = None
    expires_at: datetime | None = None


async def create_api_key(
    session: AsyncSession, user_id: UUID, new: NewKey, creator: KeyAccess | None = None
) -> tuple[sa.Row[Any], str]:
    """Create a key; returns its row and the key, which cannot be read again. `creator` is the key of the request.

    Raises `Forbidden` for more access than that of `creator`, `Unprocessable` for an expiry in the past, `NotFound` for
    a flow that is not the user's, and `LimitReached`.
    """
    if new.expires_at is not None and new.expires_at <= now():
        raise Unprocessable({"body.expiresAt": "Must be in the future"})
    if creator is not None:
        _require_less_access(new, creator)
    await _require_room(session, user_id)
    await _require_flows(session, user_id, new.flow_ids or ())
    key = new_key()
    written = await session.execute(
        sa.insert(ApiKeyRecord)
        .values(
            user_id=user_id,
            name=new.name,
            key_hash=hash_of(key),
            hint=hint_of(key),
            scopes=sorted(set(new.scopes)),
            flow_ids=None if new.flow_ids is None else sorted({str(flow_id) for flow_id in new.flow_ids}),
            expires_at=new.expires_at,
        )
        .returning(*SHOWN)
    )
    row = written.one()
    await audit.record(session, AuditAction.API_KEY_CREATED, user_id, row.id, after=_audited(row))
    return row, key


async def revoke_api_key(session: AsyncSession, key_id: UUID, *, user_id: UUID | None = None) -> None:
    """Delete the key, if it is the user's or no user is given. Raises `NotFound`."""
    wanted = [ApiKeyRecord.id == key_id]
    if user_id is not None:
        wanted.append(ApiKeyRecord.user_id == user_id)
    deleted = await session.execute(sa.delete(ApiKeyRecord).where(*wanted).returning(ApiKeyRecord.user_id, *SHOWN))
    row = deleted.first()
    if row is None:
        raise NotFound("API key")
    await audit.record(session, AuditAction.API_KEY_REVOKED, row.user_id, key_id, before=_audited(row))


def _audited(key: sa.Row[Any]) -> dict[str, Any]:
    """What the audit log shows of a key."""
    expires_at = None if key.expires_at is None else iso_utc(key.expires_at)
    return {"name": key.name, "scopes": key.scopes, "flowIds": key.flow_ids, "expiresAt": expires_at}


async def note_use(session: AsyncSession, access: KeyAccess, address: str | None) -> bool:
    """Write the time and the client address of a use, unless the last one was written within `USE_INTERVAL`.

    Does not wait for another request that is writing it. Returns whether it was written.
    """
    moment = now()
    if access.last_used_at is not None and moment - access.last_used_at < USE_INTERVAL:
        return False
    await begin_writing(session)
    due = (
        sa.select(ApiKeyRecord.id)
        .where(
            ApiKeyRecord.id == access.id,
            sa.or_(ApiKeyRecord.last_used_at.is_(None), ApiKeyRecord.last_used_at <= moment - USE_INTERVAL),
        )
        .with_for_update(skip_locked=True)
    )
    await session.execute(
        sa.update(ApiKeyRecord)
        .where(ApiKeyRecord.id.in_(due))
        .values(last_used_at=moment, last_used_address=address)
        .execution_options(synchronize_session=False)
    )
    return True


def _require_less_access(new: NewKey, creator: KeyAccess) -> None:
    """Raise `Forbidden` if the new key had a scope, a flow or a time that its creator does not have."""
    missing = sorted({*new.scopes} - {*creator.scopes})
    if missing:
        raise Forbidden(
            "missing_scope",
            f"An API key cannot create a key with scopes that it does not have: {', '.join(missing)}",
            details={"scopes": missing},
        )
    if creator.flow_ids is not None and (new.flow_ids is None or not {*new.flow_ids} <= {*creator.flow_ids}):
        raise Forbidden(
            "flow_restricted", "An API key that is restricted to flows can only create keys for some of these flows"
        )
    if creator.expires_at is not None and (new.expires_at is None or new.expires_at > creator.expires_at):
        raise Forbidden("expiry_restricted", "An API key cannot create a key that expires later than itself")


async def _require_flows(session: AsyncSession, user_id: UUID, flow_ids: Sequence[UUID]) -> None:
    wanted = {*flow_ids}
    if not wanted:
        return
    found = await session.scalars(sa.select(FlowRecord.id).where(owned_by(user_id), FlowRecord.id.in_(wanted)))
    if {*found} != wanted:
        raise NotFound("Flow")


async def _require_room(session: AsyncSession, user_id: UUID) -> None:
    """Raise `LimitReached` if the user can have no more keys."""
    plan = await lock_plan(session, user_id)
    keys = sa.select(sa.func.count()).where(ApiKeyRecord.user_id == user_id)
    number = await session.scalar(keys) or 0
    if number >= plan.api_keys:
        raise LimitReached("api_keys", plan.api_keys, number, "Revoke one that is no longer used, or upgrade.")
