"""Reads of secrets."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import SecretRecord, UserRecord
from bloxserver.queries.secrets import read_ciphertexts, read_secrets
from tests.factories import create_user


async def store(session: AsyncSession, user: UserRecord, **ciphertexts: str) -> None:
    for name, ciphertext in ciphertexts.items():
        session.add(SecretRecord(user_id=user.id, name=name, ciphertext=ciphertext))
    await session.commit()


async def test_secrets_are_sorted_by_code_point_of_their_names(session: AsyncSession, user: UserRecord) -> None:
    await store(session, user, b="1", B="2", a_b="3", aB="4", A="5")
    names = [row[0] for row in await read_secrets(session, user.id)]
    assert names == sorted(names) == ["A", "B", "aB", "a_b", "b"]


async def test_listed_secrets_have_no_values(session: AsyncSession, user: UserRecord) -> None:
    await store(session, user, token="the ciphertext")
    [row] = await read_secrets(session, user.id)
    assert list(row._mapping.keys()) == ["name", "created_at", "updated_at"]
    assert "the ciphertext" not in row


async def test_secrets_of_another_user_are_not_found(session: AsyncSession, user: UserRecord) -> None:
    await store(session, await create_user(session), token="theirs")
    assert await read_secrets(session, user.id) == []
    assert await read_ciphertexts(session, user.id, ["token"]) == {}


async def test_ciphertexts_are_those_of_the_requested_names_that_exist(session: AsyncSession, user: UserRecord) -> None:
    await store(session, user, one="1", two="2", three="3")
    await store(session, await create_user(session), one="theirs")
    assert await read_ciphertexts(session, user.id, {"one", "three", "four"}) == {"one": "1", "three": "3"}
    assert await read_ciphertexts(session, user.id, []) == {}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", "a b", "x" * 10_000])
async def test_names_that_no_secret_can_have_are_ignored(session: AsyncSession, user: UserRecord, name: str) -> None:
    await store(session, user, one="1")
    assert await read_ciphertexts(session, user.id, [name, "one"]) == {"one": "1"}
