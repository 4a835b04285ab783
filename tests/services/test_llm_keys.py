"""Users' own keys for providers: formats, encryption, rotation, and changes of one key by several processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.encryption import DecryptionError, SecretCipher
from bloxserver.errors import BadRequest, Forbidden, Unavailable
from bloxserver.model_catalogue import ProviderKind
from bloxserver.models.database import Database
from bloxserver.models.tables import AuditEventRecord, UserApiKeyRecord
from bloxserver.queries.llm_keys import StoredKey, read_usable_keys
from bloxserver.services.llm_keys import (
    USE_INTERVAL,
    decrypt_llm_key,
    delete_llm_key,
    invalidate_llm_key,
    note_use,
    rotate_stale_llm_keys,
    store_llm_key,
    verify_new_key,
)
from bloxserver.settings import Settings
from tests import factories
from tests.provider_server import VALID_KEYS, provider_server

OLD = SecretCipher(["old-key-of-an-operator-7c1f0e5b2a"])
NEW = SecretCipher(["new-key-of-an-operator-93d4a86b1f"])
BOTH = SecretCipher(["new-key-of-an-operator-93d4a86b1f", "old-key-of-an-operator-7c1f0e5b2a"])
KEY = VALID_KEYS["openai"]


def settings(encryption_key: str = "old-key-of-an-operator-7c1f0e5b2a") -> Settings:
    return Settings(database_url="sqlite+aiosqlite://", api_key_encryption_key=SecretStr(encryption_key))


async def user(session: AsyncSession, tier: str = "pro") -> UUID:
    return (await factories.create_user(session, tier=tier)).id


async def stored(session: AsyncSession, user_id: UUID, key: str = KEY, cipher: SecretCipher = OLD) -> StoredKey:
    await store_llm_key(session, cipher, user_id, "openai", key)
    [found] = await read_usable_keys(session, user_id)
    return found


@pytest.mark.parametrize(
    ("provider", "key", "problem"),
    [
        ("openai", "sk-ant-0123456789abcdef", "A key for openai begins with sk-"),
        ("anthropic", "sk-0123456789abcdefghij", "A key for anthropic begins with sk-ant-"),
        ("xai", "0123456789abcdefghij", "A key for xai begins with xai-"),
        ("together", "0123456789 abcdefghij", "A key is printable ASCII without blanks"),
        ("openai", "sk-0123456789abcdefghij\n", "A key is printable ASCII without blanks"),
        ("openai", "sk-0123456789abcdefghijé", "A key is printable ASCII without blanks"),
    ],
)
async def test_malformed_key_is_refused_without_a_request(
    session: AsyncSession, provider: ProviderKind, key: str, problem: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        await verify_new_key(session, settings(), await user(session), provider, key)
    assert (caught.value.code, caught.value.message) == ("invalid_provider_key", problem)


async def test_key_needs_a_plan_and_an_encryption_key(session: AsyncSession) -> None:
    free = await user(session, "free")
    with pytest.raises(Forbidden, match="does not include own keys"):
        await verify_new_key(session, settings(), free, "openai", KEY)
    with pytest.raises(Forbidden, match="does not include own keys"):
        await store_llm_key(session, OLD, free, "openai", KEY)
    with pytest.raises(Unavailable, match="cannot store secrets"):
        await verify_new_key(session, settings(""), await user(session), "openai", KEY)
    with pytest.raises(Unavailable, match="cannot store secrets"):
        await store_llm_key(session, None, await user(session), "openai", KEY)


async def test_key_is_tested_where_the_operator_allows_own_keys(session: AsyncSession, tmp_path: Path) -> None:
    path = tmp_path / "providers.yaml"
    with provider_server() as proxy:
        path.write_text(f"providers: {{proxy: {{kind: openai, base_url: '{proxy.url}', own_keys: true}}}}")
        given = settings().model_copy(update={"llm_providers": str(path)})
        await verify_new_key(session, given, await user(session), "openai", KEY)
        assert [request.key for request in proxy.requests] == [KEY]


async def test_ciphertext_is_bound_to_user_and_provider(session: AsyncSession) -> None:
    ada, bob = await user(session), await user(session)
    key = await stored(session, ada)
    assert KEY.encode() not in key.encrypted_key
    assert decrypt_llm_key(OLD, ada, key) == decrypt_llm_key(BOTH, ada, key) == KEY
    other_provider = StoredKey(key.id, "together", key.encrypted_key, None)
    other_key_id = StoredKey(key.id, "openai", NEW.prefix.encode() + key.encrypted_key.split(b".")[-1], None)
    for user_id, changed in ((bob, key), (ada, other_provider), (ada, other_key_id)):
        with pytest.raises(DecryptionError):
            decrypt_llm_key(BOTH, user_id, changed)


async def test_rejected_key_is_marked_once_by_all_processes(live_database: Database) -> None:
    async with live_database.sessions() as session:
        ada = await user(session)
        key = await stored(session, ada)
        await session.commit()

    async def invalidate() -> bool:
        async with live_database.transaction() as session:
            return await invalidate_llm_key(session, ada, key, "rejected")

    assert sum(await asyncio.gather(*(invalidate() for _ in range(5)))) == 1
    async with live_database.sessions() as session:
        actions = list(await session.scalars(sa.select(AuditEventRecord.action).order_by(AuditEventRecord.id)))
        assert await read_usable_keys(session, ada) == []
    assert actions == ["llm_key.added", "llm_key.invalidated"]


async def test_replaced_or_deleted_key_is_not_marked(session: AsyncSession) -> None:
    ada = await user(session)
    key = await stored(session, ada)
    replaced = await stored(session, ada, KEY)  # the same text, encrypted again
    assert replaced.id == key.id
    assert not await invalidate_llm_key(session, ada, key, "rejected")
    assert await read_usable_keys(session, ada) == [replaced]
    await delete_llm_key(session, ada, "openai")
    assert not await invalidate_llm_key(session, ada, replaced, "rejected")


async def test_time_of_use_of_another_process_is_kept_for_a_minute(session: AsyncSession) -> None:
    ada = await user(session)
    key = await stored(session, ada)
    for age, is_kept in ((USE_INTERVAL / 2, True), (USE_INTERVAL * 2, False)):
        before = now() - age
        await session.execute(sa.update(UserApiKeyRecord).values(last_used_at=before))
        await note_use(session, key)
        assert (await session.scalar(sa.select(UserApiKeyRecord.last_used_at)) == before) is is_kept


async def test_rotation_encrypts_with_the_first_key_and_can_be_resumed(session: AsyncSession) -> None:
    users = [await user(session) for _ in range(5)]
    for user_id in users[:4]:
        await stored(session, user_id)
    await stored(session, users[4], cipher=SecretCipher(["a key that the operator has lost, 32"]))
    session.add(UserApiKeyRecord(user_id=users[0], provider="xai"))  # as another program may insert it
    await session.flush()
    first = await rotate_stale_llm_keys(session, BOTH, 2)
    assert (first.rotated, first.unreadable) == (2, 0)
    # Interrupted, and begun again.
    second = await rotate_stale_llm_keys(session, BOTH, 100)
    assert second == (2, 1, None)
    assert await rotate_stale_llm_keys(session, BOTH, 100) == (0, 1, None)
    for user_id in users[:4]:
        [key] = await read_usable_keys(session, user_id)
        assert decrypt_llm_key(NEW, user_id, key) == KEY
