"""Users' own keys for providers of language models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.enums import Tier
from bloxserver.models.tables import UserApiKeyRecord, UserRecord
from bloxserver.plans import get_plan

SHOWN = (
    UserApiKeyRecord.id,
    UserApiKeyRecord.provider,
    UserApiKeyRecord.key_hint,
    UserApiKeyRecord.is_valid,
    UserApiKeyRecord.last_error,
    UserApiKeyRecord.last_used_at,
    UserApiKeyRecord.created_at,
)
"""The columns of a key that the API returns."""
LlmKeyRow: TypeAlias = "sa.Row[UUID, str, str | None, bool, str | None, datetime | None, datetime]"
USABLE = UserApiKeyRecord.is_valid, UserApiKeyRecord.encrypted_key.is_not(None)


@dataclass(slots=True)
class StoredKey:
    """A valid key of a user."""

    id: UUID
    provider: str
    encrypted_key: bytes
    last_used_at: datetime | None


async def read_llm_keys(session: AsyncSession, user_id: UUID) -> list[LlmKeyRow]:
    """The user's keys without the keys themselves, by provider."""
    rows = await session.execute(sa.select(*SHOWN).where(UserApiKeyRecord.user_id == user_id))
    # Sorted here: the databases have different collations.
    return sorted(rows.all(), key=lambda row: str(row.provider))


async def read_llm_key(session: AsyncSession, user_id: UUID, key_id: UUID) -> LlmKeyRow:
    """One of the user's keys, without the key itself. Raises `NotFound`."""
    wanted = sa.select(*SHOWN).where(UserApiKeyRecord.user_id == user_id, UserApiKeyRecord.id == key_id)
    row = (await session.execute(wanted)).first()
    if row is None:
        raise NotFound("LLM key")
    return row


async def read_usable_keys(session: AsyncSession, user_id: UUID) -> list[StoredKey]:
    """The user's valid keys, in one statement."""
    record = UserApiKeyRecord
    columns = record.id, record.provider, record.encrypted_key, record.last_used_at
    rows = await session.execute(sa.select(*columns).where(record.user_id == user_id, *USABLE))
    return [StoredKey(row.id, row.provider, row.encrypted_key or b"", row.last_used_at) for row in rows]


async def read_usable_kinds(session: AsyncSession, user_id: UUID) -> frozenset[str]:
    """The providers for which the user has a valid key; none if their plan does not include own keys."""
    rows = await session.execute(
        sa.select(UserApiKeyRecord.provider, UserRecord.tier, UserRecord.limits)
        .join(UserRecord, UserRecord.id == UserApiKeyRecord.user_id)
        .where(UserApiKeyRecord.user_id == user_id, *USABLE)
    )
    return frozenset(provider for provider, tier, limits in rows if get_plan(tier or Tier.FREE, limits).own_model_keys)
