from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound
from bloxserver.models.tables import SigningSecretRecord
from bloxserver.queries.triggers import read_trigger

SHOWN = (SigningSecretRecord.id, SigningSecretRecord.hint, SigningSecretRecord.created_at)
"""The columns of a signing secret that the API returns."""


async def read_signing_secrets(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID
) -> list[sa.Row[UUID, str, datetime]]:
    """The signing secrets of the user's webhook without their values, the oldest first. Raises `NotFound`."""
    await read_trigger(session, user_id, flow_id, trigger_id)
    rows = await session.execute(_of(trigger_id))
    return list(rows.all())


async def read_signing_secret(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID, secret_id: UUID
) -> sa.Row[UUID, str, datetime]:
    """One of these secrets. Raises `NotFound`."""
    await read_trigger(session, user_id, flow_id, trigger_id)
    row = (await session.execute(_of(trigger_id).where(SigningSecretRecord.id == secret_id))).first()
    if row is None:
        raise NotFound("Signing secret")
    return row


def _of(trigger_id: UUID) -> sa.Select[UUID, str, datetime]:
    wanted = sa.select(*SHOWN).where(SigningSecretRecord.trigger_id == trigger_id)
    return wanted.order_by(SigningSecretRecord.created_at, SigningSecretRecord.id)
