"""Users' own keys for providers of language models. They are stored encrypted, and never returned."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clients.model_keys import KeyRejected, check_key
from bloxserver.clock import now
from bloxserver.encryption import DecryptionError, SecretCipher, get_cipher
from bloxserver.errors import BadRequest, Forbidden, NotFound
from bloxserver.model_catalogue import ProviderKind, catalogue_of
from bloxserver.models.database import release
from bloxserver.models.enums import ActorKind, AuditAction
from bloxserver.models.tables import UserApiKeyRecord
from bloxserver.models.upsert import insert_into
from bloxserver.plans import Plan
from bloxserver.queries.llm_keys import SHOWN, LlmKeyRow, StoredKey
from bloxserver.queries.users import read_plan
from bloxserver.services import audit
from bloxserver.services.secrets import RotatedBatch, require_cipher
from bloxserver.services.users import lock_plan
from bloxserver.settings import Settings

PREFIXES: dict[str, ProviderKind] = {"sk-ant-": "anthropic", "sk-": "openai", "xai-": "xai"}
"""The documented beginnings of keys. A longer one precedes those that it begins with."""
HINT_LENGTH = 4
USE_INTERVAL = timedelta(minutes=1)
"""The accuracy of the time of the last use."""


async def verify_new_key(
    session: AsyncSession, settings: Settings, user_id: UUID, provider: ProviderKind, key: str
) -> None:
    """Check a key that is to be stored, also by a request to the provider. Ends the transaction.

    Raises `BadRequest` for a malformed key or one that the provider rejects, `Forbidden` without a plan that includes
    own keys, and `Unavailable` without an encryption key or if the provider cannot be reached.
    """
    _check_format(provider, key)
    _require_plan(await read_plan(session, user_id))
    require_cipher(get_cipher(settings))
    await release(session)
    try:
        await check_key(provider, key, catalogue_of(settings).url_for_own_keys(provider))
    except KeyRejected as error:
        raise BadRequest("invalid_provider_key", str(error)) from None


async def store_llm_key(
    session: AsyncSession, cipher: SecretCipher | None, user_id: UUID, provider: ProviderKind, key: str
) -> LlmKeyRow:
    """Store a verified key, in place of the user's key for this provider if there is one.

    Raises `Forbidden` and `Unavailable` as `verify_new_key`.
    """
    encrypted = require_cipher(cipher).encrypt(key, owner=user_id, name=_name_of(provider)).encode()
    _require_plan(await lock_plan(session, user_id))
    values = {
        "encrypted_key": encrypted,
        "key_hint": key[-HINT_LENGTH:],
        "is_valid": True,
        "last_error": None,
        "last_used_at": None,
        "created_at": now(),
    }
    written = await session.execute(
        insert_into(session, UserApiKeyRecord)
        .values(user_id=user_id, provider=provider, **values)
        .on_conflict_do_update(index_elements=[UserApiKeyRecord.user_id, UserApiKeyRecord.provider], set_=values)
        .returning(*SHOWN)
    )
    row = written.one()
    await audit.record(session, AuditAction.LLM_KEY_ADDED, user_id, provider)
    return row


async def delete_llm_key(session: AsyncSession, user_id: UUID, provider: str) -> None:
    """Delete the user's key for the provider. Raises `NotFound`."""
    deleted = await session.execute(
        sa.delete(UserApiKeyRecord)
        .where(UserApiKeyRecord.user_id == user_id, UserApiKeyRecord.provider == provider)
        .returning(UserApiKeyRecord.id)
    )
    if deleted.first() is None:
        raise NotFound("LLM key")
    await audit.record(session, AuditAction.LLM_KEY_DELETED, user_id, provider)


def decrypt_llm_key(cipher: SecretCipher, user_id: UUID, key: StoredKey) -> str:
    """Return the key itself. Raises `DecryptionError`."""
    return cipher.decrypt(key.encrypted_key.decode(errors="replace"), owner=user_id, name=_name_of(key.provider))


async def invalidate_llm_key(session: AsyncSession, user_id: UUID, key: StoredKey, error: str) -> bool:
    """Mark a key that the provider has rejected, and notify its user.

    Returns False if another request has marked it, or if it was replaced or deleted meanwhile.
    """
    marked = await session.execute(
        sa.update(UserApiKeyRecord)
        .where(
            UserApiKeyRecord.id == key.id,
            UserApiKeyRecord.encrypted_key == key.encrypted_key,
            UserApiKeyRecord.is_valid,
        )
        .values(is_valid=False, last_error=error)
        .returning(UserApiKeyRecord.id)
        .execution_options(synchronize_session=False)
    )
    if marked.first() is None:
        return False
    await notify_invalid_key(session, user_id, key.provider)
    return True


async def notify_invalid_key(session: AsyncSession, user_id: UUID, provider: str) -> None:
    """Notify the user that the provider has rejected their key: by an event in the audit log."""
    token = audit.current_actor.set(audit.Actor(ActorKind.MODEL_PROVIDER, provider))
    try:
        await audit.record(session, AuditAction.LLM_KEY_INVALIDATED, user_id, provider)
    finally:
        audit.current_actor.reset(token)


async def note_use(session: AsyncSession, key: StoredKey) -> None:
    """Write the time of a use, unless another process has written one within `USE_INTERVAL`."""
    moment = now()
    used_at = UserApiKeyRecord.last_used_at
    await session.execute(
        sa.update(UserApiKeyRecord)
        .where(
            UserApiKeyRecord.id == key.id,
            UserApiKeyRecord.encrypted_key == key.encrypted_key,
            sa.or_(used_at.is_(None), used_at <= moment - USE_INTERVAL),
        )
        .values(last_used_at=moment)
        .execution_options(synchronize_session=False)
    )


async def rotate_stale_llm_keys(
    session: AsyncSession, cipher: SecretCipher, limit: int, after: UUID | None = None
) -> RotatedBatch:
    """Encrypt keys with the first key of the cipher, as `services.secrets.rotate_stale` does for secrets."""
    record = UserApiKeyRecord
    prefix = cipher.prefix.encode()
    stale = sa.func.substr(record.encrypted_key, 1, len(prefix)) != sa.literal(prefix, sa.LargeBinary)
    wanted = sa.select(record.id, record.user_id, record.provider, record.encrypted_key).where(
        stale, *([] if after is None else [record.id > after])
    )
    rows = (await session.execute(wanted.order_by(record.id).limit(limit))).all()
    unreadable = 0
    for key_id, user_id, provider, old in rows:
        name = _name_of(provider)
        try:
            text = cipher.decrypt((old or b"").decode(errors="replace"), owner=user_id, name=name)
        except DecryptionError:
            unreadable += 1
            continue
        await session.execute(
            sa.update(record)
            .where(record.id == key_id, record.encrypted_key == old)
            .values(encrypted_key=cipher.encrypt(text, owner=user_id, name=name).encode())
            .execution_options(synchronize_session=False)
        )
    return RotatedBatch(len(rows) - unreadable, unreadable, rows[-1].id if len(rows) == limit else None)


def _check_format(provider: ProviderKind, key: str) -> None:
    """Raise `BadRequest` for a text that is no key, or one of another provider."""
    problem = None
    if not all("!" <= character <= "~" for character in key):
        problem = "A key is printable ASCII without blanks"
    else:
        found = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        expected = next((prefix for prefix, kind in PREFIXES.items() if kind == provider), None)
        if expected is not None and found != expected:
            problem = f"A key for {provider} begins with {expected}"
    if problem is not None:
        raise BadRequest("invalid_provider_key", problem)


def _require_plan(plan: Plan) -> None:
    if not plan.own_model_keys:
        raise Forbidden(
            "own_model_keys_not_in_plan", "Your plan does not include own keys for language models. Upgrade to add one."
        )


def _name_of(provider: str) -> str:
    """The name in the associated data of the ciphertext. No secret of a user can have it."""
    return f"llm key {provider}"
