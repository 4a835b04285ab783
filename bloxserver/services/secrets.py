"""Secrets of users. They are stored encrypted, decrypted only when they are used, and never returned by the API."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.encryption import DecryptionError, SecretCipher
from bloxserver.errors import Conflict, LimitReached, NotFound, Unavailable
from bloxserver.models.enums import AuditAction
from bloxserver.models.tables import SecretRecord
from bloxserver.models.upsert import insert_into
from bloxserver.queries.secrets import SHOWN, SecretRow, read_ciphertexts
from bloxserver.services import audit
from bloxserver.services.users import lock_plan

REASONS: Final = {
    "missing": "does not exist",
    "unreadable": "cannot be read: the server no longer has the key that encrypted it; set it again",
}


class SecretUnavailable(Conflict):
    """A secret does not exist (`secret_missing`) or cannot be decrypted (`secret_unreadable`)."""

    def __init__(self, name: str, reason: Literal["missing", "unreadable"]) -> None:
        super().__init__(f"secret_{reason}", f"The secret {name} {REASONS[reason]}")
        self.name = name
        self.reason = reason


async def set_secret(
    session: AsyncSession, cipher: SecretCipher | None, user_id: UUID, name: str, value: str
) -> SecretRow:
    """Create the secret or replace its value. Raises `Unavailable` without a cipher, `LimitReached`."""
    ciphertext = _ciphertext(cipher, user_id, name, value)
    await _lock_user(session, user_id, name)
    moment = now()
    written = await session.execute(
        insert_into(session, SecretRecord)
        .values(user_id=user_id, name=name, ciphertext=ciphertext, created_at=moment, updated_at=moment)
        .on_conflict_do_update(
            index_elements=[SecretRecord.user_id, SecretRecord.name],
            set_={"ciphertext": ciphertext, "updated_at": moment},
        )
        .returning(*SHOWN)
    )
    row = written.one()
    is_new = row.created_at == moment
    await audit.record(session, AuditAction.SECRET_CREATED if is_new else AuditAction.SECRET_UPDATED, user_id, name)
    return row


async def create_secret(
    session: AsyncSession, cipher: SecretCipher | None, user_id: UUID, name: str, value: str
) -> SecretRow:
    """Create a secret. Raises `Conflict` if it exists, `Unavailable` without a cipher, `LimitReached`."""
    ciphertext = _ciphertext(cipher, user_id, name, value)
    await _lock_user(session, user_id, name)
    moment = now()
    written = await session.execute(
        insert_into(session, SecretRecord)
        .values(user_id=user_id, name=name, ciphertext=ciphertext, created_at=moment, updated_at=moment)
        .on_conflict_do_nothing(index_elements=[SecretRecord.user_id, SecretRecord.name])
        .returning(*SHOWN)
    )
    row = written.first()
    if row is None:
        raise Conflict("secret_exists", f"There is a secret called {name} already")
    await audit.record(session, AuditAction.SECRET_CREATED, user_id, name)
    return row


async def delete_secret(session: AsyncSession, user_id: UUID, name: str) -> None:
    """Delete the secret; raises `NotFound`."""
    deleted = await session.execute(
        sa.delete(SecretRecord)
        .where(SecretRecord.user_id == user_id, SecretRecord.name == name)
        .returning(SecretRecord.id)
    )
    if deleted.first() is None:
        raise NotFound("Secret")
    await audit.record(session, AuditAction.SECRET_DELETED, user_id, name)


async def decrypt_secrets(
    session: AsyncSession, cipher: SecretCipher | None, user_id: UUID, names: Collection[str]
) -> dict[str, str]:
    """The values of the user's secrets of these names, read in one statement.

    Raises `SecretUnavailable` for the first secret that does not exist or cannot be decrypted.
    """
    read = await read_values(session, cipher, user_id, names)
    for name in sorted({*read.missing, *read.unreadable}):
        raise SecretUnavailable(name, "missing" if name in read.missing else "unreadable")
    return read.values


class SecretValues(NamedTuple):
    """The secrets of a list of names."""

    values: dict[str, str]
    missing: set[str]
    """The names for which the user has no secret."""
    unreadable: set[str]
    """The secrets that no configured key decrypts."""


async def read_values(
    session: AsyncSession, cipher: SecretCipher | None, user_id: UUID, names: Collection[str]
) -> SecretValues:
    """The values of the user's secrets of these names, read in one statement."""
    stored = await read_ciphertexts(session, user_id, names)
    read = SecretValues({}, set(names) - stored.keys(), set())
    for name, ciphertext in stored.items():
        try:
            if cipher is None:
                raise DecryptionError
            read.values[name] = cipher.decrypt(ciphertext, owner=user_id, name=name)
        except DecryptionError:
            read.unreadable.add(name)
    return read


class RotatedBatch(NamedTuple):
    """The result of one batch of a key rotation."""

    rotated: int
    unreadable: int
    """Secrets that were not changed, since their key is not configured."""
    last_id: UUID | None
    """The id after which the next batch begins; None after the last batch."""


async def rotate_stale(
    session: AsyncSession, cipher: SecretCipher, limit: int, after: UUID | None = None
) -> RotatedBatch:
    """Encrypt with the first key up to `limit` secrets of all users that another key encrypted, in the order of ids.

    A rotation may be interrupted and repeated. Secrets that change during a batch are not overwritten.
    """
    stale = sa.not_(SecretRecord.ciphertext.startswith(cipher.prefix, autoescape=True))
    wanted = [stale] if after is None else [stale, SecretRecord.id > after]
    rows = (
        await session.execute(
            sa.select(SecretRecord.id, SecretRecord.user_id, SecretRecord.name, SecretRecord.ciphertext)
            .where(*wanted)
            .order_by(SecretRecord.id)
            .limit(limit)
        )
    ).all()
    unreadable = 0
    for secret_id, user_id, name, old in rows:
        try:
            ciphertext = cipher.encrypt(cipher.decrypt(old, owner=user_id, name=name), owner=user_id, name=name)
        except DecryptionError:
            unreadable += 1
            continue
        await session.execute(
            sa.update(SecretRecord)
            .where(SecretRecord.id == secret_id, SecretRecord.ciphertext == old)
            .values(ciphertext=ciphertext, updated_at=SecretRecord.updated_at)  # the value is unchanged
        )
    return RotatedBatch(len(rows) - unreadable, unreadable, rows[-1].id if len(rows) == limit else None)


def require_cipher(cipher: SecretCipher | None) -> SecretCipher:
    """Raise `Unavailable` if the server has no key to encrypt secrets with."""
    if cipher is None:
        raise Unavailable(
            "secrets_not_configured",
            "This server cannot store secrets: its API_KEY_ENCRYPTION_KEY must be set to a key of at least 32 bytes",
        )
    return cipher


def _ciphertext(cipher: SecretCipher | None, user_id: UUID, name: str, value: str) -> str:
    return require_cipher(cipher).encrypt(value, owner=user_id, name=name)


async def _lock_user(session: AsyncSession, user_id: UUID, name: str) -> None:
    """Lock the user's row, so that the limit is exact. Raises `LimitReached`."""
    plan = await lock_plan(session, user_id)
    others = sa.select(sa.func.count()).where(SecretRecord.user_id == user_id, SecretRecord.name != name)
    number = await session.scalar(others) or 0
    if number >= plan.secrets:
        hint = "Delete one that is no longer used, or upgrade."
        raise LimitReached("secrets", plan.secrets, number, hint, code="secret_limit_reached")
