from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.encryption import SECRET_NAME
from bloxserver.errors import NotFound
from bloxserver.models.tables import SecretRecord

SHOWN = (SecretRecord.name, SecretRecord.created_at, SecretRecord.updated_at)
"""The columns of a secret that the API returns."""
SecretRow: TypeAlias = "sa.Row[str, datetime, datetime]"


async def read_secrets(session: AsyncSession, user_id: UUID) -> list[SecretRow]:
    """The user's secrets without their values, by name."""
    rows = await session.execute(sa.select(*SHOWN).where(SecretRecord.user_id == user_id))
    # Sorted here: the databases have different collations.
    return sorted(rows.all(), key=lambda row: row[0])


async def read_secret(session: AsyncSession, user_id: UUID, name: str) -> SecretRow:
    """One of the user's secrets, without its value. Raises `NotFound`."""
    wanted = sa.select(*SHOWN).where(SecretRecord.user_id == user_id, SecretRecord.name == name)
    row = (await session.execute(wanted)).first()
    if row is None:
        raise NotFound("Secret")
    return row


async def read_ciphertexts(session: AsyncSession, user_id: UUID, names: Collection[str]) -> dict[str, str]:
    """The ciphertexts of the user's secrets of these names. Missing secrets are left out."""
    possible = [name for name in names if re.fullmatch(SECRET_NAME, name)]
    if not possible:
        return {}
    rows = await session.execute(
        sa.select(SecretRecord.name, SecretRecord.ciphertext).where(
            SecretRecord.user_id == user_id, SecretRecord.name.in_(possible)
        )
    )
    return dict(rows.all())
