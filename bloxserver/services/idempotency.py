"""Idempotency keys: a repeated request returns what the first created (draft-ietf-httpapi-idempotency-key-header)."""

from __future__ import annotations

import hmac
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BloxError, Unprocessable
from bloxserver.models.tables import IdempotencyKeyRecord
from bloxserver.models.upsert import insert_into

HEADER = "Idempotency-Key"
KEPT = timedelta(days=7)
"""How long a repeated request is recognised."""


class KeyReused(BloxError):
    """The key was used for another request. The status is that of the draft, section 2.7."""

    status = 422

    def __init__(self) -> None:
        super().__init__(
            "idempotency_key_reused", "This Idempotency-Key was used for another request. Send a new key for each one."
        )


def require_valid_key(key: str) -> None:
    """Raise `Unprocessable` for an empty key."""
    if not key.strip():
        raise Unprocessable({f"header.{HEADER}": "Must not be empty"})


async def claim_key(
    session: AsyncSession, owner_id: UUID, key: str, request: bytes, result: str | None = None
) -> str | None:
    """Store the key, unless the owner used it before. Returns the result of the request that used it, or None.

    `request` identifies the request. Of concurrent requests with one key, the others wait for the transaction of the
    first. Raises `KeyReused` if the key was used for another request.
    """
    moment = now()
    key_hash, request_hash = _hash_of(key), hmac.digest(_bytes(key), request, "sha256")
    insert = insert_into(session, IdempotencyKeyRecord).values(
        owner_id=owner_id, key_hash=key_hash, request_hash=request_hash, result=result, created_at=moment
    )
    columns = IdempotencyKeyRecord.owner_id, IdempotencyKeyRecord.key_hash
    replaced = {name: insert.excluded[name] for name in ("request_hash", "result", "created_at")}
    claim = insert.on_conflict_do_update(
        index_elements=[*columns], set_=replaced, where=IdempotencyKeyRecord.created_at <= moment - KEPT
    ).returning(IdempotencyKeyRecord.owner_id)
    if (await session.execute(claim)).first() is not None:
        return None
    return await find_result(session, owner_id, key, request)


async def find_result(session: AsyncSession, owner_id: UUID, key: str, request: bytes) -> str | None:
    """The result of the request that used the key, or None. Raises `KeyReused` as `claim_key`."""
    wanted = sa.select(IdempotencyKeyRecord.request_hash, IdempotencyKeyRecord.result).where(
        IdempotencyKeyRecord.owner_id == owner_id,
        IdempotencyKeyRecord.key_hash == _hash_of(key),
        IdempotencyKeyRecord.created_at > now() - KEPT,
    )
    used = (await session.execute(wanted)).first()
    if used is None:
        return None
    if used.request_hash != hmac.digest(_bytes(key), request, "sha256"):
        raise KeyReused
    found: str | None = used.result
    return found


async def set_result(session: AsyncSession, owner_id: UUID, key: str, result: str) -> None:
    """Store what the request with this key created."""
    await session.execute(
        sa.update(IdempotencyKeyRecord)
        .where(
            IdempotencyKeyRecord.owner_id == owner_id,
            IdempotencyKeyRecord.key_hash == _hash_of(key),
        )
        .values(result=result)
        .execution_options(synchronize_session=False)
    )


def _hash_of(key: str) -> bytes:
    return sha256(_bytes(key)).digest()


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogatepass")
