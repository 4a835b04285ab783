"""Signing secrets of webhooks. They are stored encrypted, and returned only when they are created."""

from __future__ import annotations

import base64
import secrets
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.encryption import DecryptionError, SecretCipher
from bloxserver.errors import BadRequest, Conflict, NotFound, Unprocessable
from bloxserver.ids import new_id
from bloxserver.models.enums import AuditAction, TriggerType
from bloxserver.models.tables import FlowRecord, SigningSecretRecord, TriggerRecord
from bloxserver.queries.signing_secrets import SHOWN
from bloxserver.queries.triggers import read_trigger
from bloxserver.raw_json import plain_object
from bloxserver.services import audit
from bloxserver.services.secrets import RotatedBatch, require_cipher
from bloxserver.services.webhook_schemes import Unsigned, check_signature
from bloxserver.signing_key_format import PREFIX

MAX_SECRETS = 2
"""Valid at the same time: the current one and the next one, during a rotation."""
SECRET_BYTES = 32
HINT_LENGTH = 4
MIN_LENGTH_WITH_HINT = 16


async def create_signing_secret(
    session: AsyncSession,
    cipher: SecretCipher | None,
    user_id: UUID,
    flow_id: UUID,
    trigger_id: UUID,
    given: str | None,
) -> tuple[sa.Row[UUID, str, datetime], str]:
    """Add a signing secret: the given one, or a new one. Returns its row and the secret.

    Raises `NotFound`, `BadRequest` for another kind of trigger, `Conflict` if there are `MAX_SECRETS` already,
    `Unprocessable` for a secret that the scheme of the webhook cannot use, and `Unavailable` without a cipher.
    """
    cipher = require_cipher(cipher)
    trigger = await read_trigger(session, user_id, flow_id, trigger_id, lock=True)
    if trigger.type is not TriggerType.WEBHOOK:
        raise BadRequest("trigger_not_a_webhook", "Only webhooks have signing secrets")
    secret = _new_secret() if given is None else given
    _check(trigger, secret)
    of_trigger = SigningSecretRecord.trigger_id == trigger_id
    if (await session.scalar(sa.select(sa.func.count()).where(of_trigger)) or 0) >= MAX_SECRETS:
        raise Conflict(
            "signing_secrets_limit", f"A webhook has at most {MAX_SECRETS} signing secrets. Delete one first."
        )
    secret_id = new_id()
    written = await session.execute(
        sa.insert(SigningSecretRecord)
        .values(
            id=secret_id,
            trigger_id=trigger_id,
            hint=secret[-HINT_LENGTH:] if len(secret) >= MIN_LENGTH_WITH_HINT else "",
            ciphertext=cipher.encrypt(secret, owner=user_id, name=_name_of(secret_id)),
        )
        .returning(*SHOWN)
    )
    action, after = AuditAction.SIGNING_SECRET_CREATED, {"triggerId": str(trigger_id)}
    await audit.record(session, action, user_id, secret_id, flow_id=flow_id, after=after)
    return written.one(), secret


async def delete_signing_secret(
    session: AsyncSession, user_id: UUID, flow_id: UUID, trigger_id: UUID, secret_id: UUID
) -> None:
    """Delete the secret, with which no request is accepted after the commit. Raises `NotFound`."""
    await read_trigger(session, user_id, flow_id, trigger_id)
    deleted = await session.execute(
        sa.delete(SigningSecretRecord)
        .where(SigningSecretRecord.id == secret_id, SigningSecretRecord.trigger_id == trigger_id)
        .returning(SigningSecretRecord.id)
    )
    if deleted.first() is None:
        raise NotFound("Signing secret")
    action, before = AuditAction.SIGNING_SECRET_DELETED, {"triggerId": str(trigger_id)}
    await audit.record(session, action, user_id, secret_id, flow_id=flow_id, before=before)


async def read_signing_secrets(
    session: AsyncSession, cipher: SecretCipher | None, user_id: UUID, trigger_id: UUID
) -> list[str]:
    """The signing secrets of a webhook of the user. Those that cannot be decrypted are left out."""
    rows = await session.execute(
        sa.select(SigningSecretRecord.id, SigningSecretRecord.ciphertext).where(
            SigningSecretRecord.trigger_id == trigger_id
        )
    )
    found = []
    for secret_id, ciphertext in rows:
        try:
            if cipher is not None:
                found.append(cipher.decrypt(ciphertext, owner=user_id, name=_name_of(secret_id)))
        except DecryptionError:
            continue
    return found


async def rotate_stale_signing_secrets(
    session: AsyncSession, cipher: SecretCipher, limit: int, after: UUID | None = None
) -> RotatedBatch:
    """Encrypt signing secrets with the first key, as `services.secrets.rotate_stale` does for secrets."""
    record = SigningSecretRecord
    stale = sa.not_(record.ciphertext.startswith(cipher.prefix, autoescape=True))
    wanted = (
        sa.select(record.id, FlowRecord.user_id, record.ciphertext)
        .join(TriggerRecord, TriggerRecord.id == record.trigger_id)
        .join(FlowRecord, FlowRecord.id == TriggerRecord.flow_id)
        .where(stale, *([] if after is None else [record.id > after]))
    )
    rows = (await session.execute(wanted.order_by(record.id).limit(limit))).all()
    unreadable = 0
    for secret_id, user_id, old in rows:
        name = _name_of(secret_id)
        try:
            ciphertext = cipher.encrypt(cipher.decrypt(old, owner=user_id, name=name), owner=user_id, name=name)
        except DecryptionError:
            unreadable += 1
            continue
        await session.execute(sa.update(record).where(record.id == secret_id).values(ciphertext=ciphertext))
    return RotatedBatch(len(rows) - unreadable, unreadable, rows[-1].id if len(rows) == limit else None)


def _new_secret() -> str:
    """A secret that every scheme can use."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _check(trigger: TriggerRecord, secret: str) -> None:
    """Raise `Unprocessable` if the scheme of the webhook, if it has one, cannot use the secret."""
    scheme = check_signature(plain_object(trigger.config)) or Unsigned()
    try:
        scheme.check_secret(secret)
    except ValueError as error:
        raise Unprocessable({"body.secret": str(error)}) from None


def _name_of(secret_id: UUID) -> str:
    """The name in the associated data of the ciphertext. No secret of a user can have it."""
    return f"signing secret {secret_id}"
