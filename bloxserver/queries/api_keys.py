from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.tables import ApiKeyRecord, UserRecord

_keys, _users = ApiKeyRecord.__table__, UserRecord.__table__

SHOWN = tuple(column for column in _keys.c if column.name not in {"user_id", "key_hash"})
"""The columns of a key that the API returns."""

BY_HASH = (
    sa.select(
        *(_keys.c[name] for name in ("id", "user_id", "scopes", "flow_ids", "expires_at", "last_used_at")),
        _users.c.clerk_id,
    )
    .join_from(_keys, _users, _users.c.id == _keys.c.user_id)
    .where(_keys.c.key_hash == sa.bindparam("key_hash", type_=_keys.c.key_hash.type))
)


@dataclass(frozen=True)
class KeyAccess:
    """What an API key gives access to."""

    id: UUID
    user_id: UUID
    clerk_id: str
    """The identity of the key's user."""
    scopes: Collection[str]
    flow_ids: Collection[UUID] | None
    """The flows to which the key is restricted; None if it is not."""
    expires_at: datetime | None
    last_used_at: datetime | None

    def reaches(self, flow_id: UUID) -> bool:
        """Whether the key may be used for this flow."""
        return self.flow_ids is None or flow_id in self.flow_ids


async def find_access(session: AsyncSession, key_hash: bytes) -> KeyAccess | None:
    """What the key with this hash gives access to. It may have expired. None if there is no such key."""
    row = (await session.execute(BY_HASH, {"key_hash": key_hash})).first()
    if row is None:
        return None
    flow_ids = None if row.flow_ids is None else frozenset(map(UUID, row.flow_ids))
    return KeyAccess(
        row.id, row.user_id, row.clerk_id, frozenset(row.scopes), flow_ids, row.expires_at, row.last_used_at
    )


async def read_api_key(session: AsyncSession, user_id: UUID, key_id: UUID) -> sa.Row[Any]:
    """One of the user's keys. Raises `NotFound`."""
    row = (await session.execute(sa.select(*SHOWN).where(_keys.c.user_id == user_id, _keys.c.id == key_id))).first()
    if row is None:
        raise NotFound("API key")
    return row


async def read_api_keys(session: AsyncSession, user_id: UUID) -> list[sa.Row[Any]]:
    """The user's keys, the newest first."""
    rows = await session.execute(
        sa.select(*SHOWN).where(_keys.c.user_id == user_id).order_by(_keys.c.created_at.desc(), _keys.c.id.desc())
    )
    return list(rows.all())
