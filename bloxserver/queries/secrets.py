from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.encryption import SECRET_NAME
from bloxserver.models.tables import SecretRecord

SHOWN = (SecretRecord.name, SecretRecord.created_at, SecretRecord.updated_at)
"""All that is ever told of a secret."""
SecretRow: TypeAlias = "sa.Row[str, datetime, datetime]"


async def read_secrets(session: AsyncSession, user_id: UUID) -> list[SecretRow]:
    """The user's secrets without their values, by name."""
    rows = await session.execute(sa.select(*SHOWN).where(SecretRecord.user_id == user_id))
    # Databases sort texts by rules of their own.
    return sorted(rows.all(), key=lambda row: row[0])


async def read_ciphertexts(session: AsyncSession, user_id: UUID, names: Collection[str]) -> dict[str, str]:
    """The user's sealed secrets of these names, as far as there are any."""
    possible = [name for name in names if re.fullmatch(SECRET_NAME, name)]
    if not possible:
        return {}
    rows = await session.execute(
        sa.select(SecretRecord.name, SecretRecord.ciphertext).where(
            SecretRecord.user_id == user_id, SecretRecord.name.in_(possible)
        )
    )
    return dict(rows.all())
