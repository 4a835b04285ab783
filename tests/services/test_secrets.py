"""The services of secrets: encryption, decryption, key rotation and the limit."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.encryption import SecretCipher
from bloxserver.errors import BloxError, Conflict, Forbidden, Unavailable
from bloxserver.models.database import Database
from bloxserver.models.tables import SecretRecord
from bloxserver.plans import FREE
from bloxserver.services.secrets import (
    RotatedBatch,
    SecretUnavailable,
    create_secret,
    decrypt_secrets,
    read_values,
    rotate_stale,
    set_secret,
)
from tests import factories
from tests.lock_waits import wait_for_lock_wait
from tests.statements import count_statements

OLD = SecretCipher(["old-key-of-an-operator-7c1f0e5b2a"])
NEW = SecretCipher(["new-key-of-an-operator-93d4a86b1f"])
BOTH = SecretCipher(["new-key-of-an-operator-93d4a86b1f", "old-key-of-an-operator-7c1f0e5b2a"])
VALUE = "canary-4f1d9c02b7e8"


async def user(database: Database) -> UUID:
    async with database.sessions() as session:
        return (await factories.create_user(session)).id


async def rows(session: AsyncSession) -> list[SecretRecord]:
    return list(await session.scalars(sa.select(SecretRecord).order_by(SecretRecord.name)))


class TestOpen:
    async def test_secrets_are_decrypted_by_name_in_one_statement(
        self, session: AsyncSession, database_engine: AsyncEngine
    ) -> None:
        ada = (await factories.create_user(session)).id
        for name in "ABC":
            await set_secret(session, OLD, ada, name, f"{VALUE}-{name}")
        with count_statements(database_engine) as statements:
            assert await decrypt_secrets(session, OLD, ada, {"A", "C"}) == {"A": f"{VALUE}-A", "C": f"{VALUE}-C"}
        assert len(statements) == 1
        assert await decrypt_secrets(session, OLD, ada, set()) == {}

    async def test_missing_secret_is_named_in_the_error(self, session: AsyncSession) -> None:
        ada = (await factories.create_user(session)).id
        bob = (await factories.create_user(session)).id
        await set_secret(session, OLD, ada, "A", VALUE)
        await set_secret(session, OLD, bob, "B", VALUE)
        with pytest.raises(SecretUnavailable) as caught:
            await decrypt_secrets(session, OLD, ada, ["A", "B"])
        assert (caught.value.name, caught.value.reason, caught.value.code) == ("B", "missing", "secret_missing")
        assert str(caught.value) == "The secret B does not exist"

    @pytest.mark.parametrize("cipher", [NEW, None], ids=["key is gone", "no key"])
    async def test_unreadable_secret_is_named_in_the_error(
        self, session: AsyncSession, cipher: SecretCipher | None
    ) -> None:
        ada = (await factories.create_user(session)).id
        await set_secret(session, OLD, ada, "A", VALUE)
        with pytest.raises(SecretUnavailable) as caught:
            await decrypt_secrets(session, cipher, ada, ["A"])
        assert (caught.value.name, caught.value.reason, caught.value.code) == ("A", "unreadable", "secret_unreadable")
        assert VALUE not in str(caught.value)

    @pytest.mark.parametrize("change", ["another owner", "another name", "junk", "empty"])
    async def test_moved_ciphertext_cannot_be_decrypted(self, session: AsyncSession, change: str) -> None:
        ada = (await factories.create_user(session)).id
        bob = (await factories.create_user(session)).id
        await set_secret(session, OLD, ada, "A", VALUE)
        await set_secret(session, OLD, ada, "B", "other")
        await set_secret(session, OLD, bob, "A", "other")
        ciphertext = {(row.user_id, row.name): row.ciphertext for row in await rows(session)}
        moved = {
            "another owner": ciphertext[bob, "A"],
            "another name": ciphertext[ada, "B"],
            "junk": "v1.0.\x01é",
            "empty": "",
        }
        await session.execute(
            sa.update(SecretRecord)
            .where(SecretRecord.user_id == ada, SecretRecord.name == "A")
            .values(ciphertext=moved[change])
        )
        with pytest.raises(SecretUnavailable, match="secret A cannot be read"):
            await decrypt_secrets(session, OLD, ada, ["A", "B"])

    async def test_missing_and_unreadable_secrets_are_listed(self, session: AsyncSession) -> None:
        ada = (await factories.create_user(session)).id
        bob = (await factories.create_user(session)).id
        await set_secret(session, OLD, ada, "A", VALUE)
        await set_secret(session, NEW, ada, "C", VALUE)
        await set_secret(session, OLD, bob, "B", VALUE)
        assert await read_values(session, OLD, ada, ["A", "B", "C", "a"]) == ({"A": VALUE}, {"B", "a"}, {"C"})
        assert await read_values(session, None, ada, ["A"]) == ({}, set(), {"A"})
        assert await read_values(session, OLD, ada, []) == ({}, set(), set())
        impossible = ["", "a b", "\0", "\ud800", "x" * 100_000, "A\n"]
        assert (await read_values(session, OLD, ada, impossible)).missing == set(impossible)


class TestLimit:
    @pytest.mark.parametrize("kind", ["set", "create"])
    async def test_limit_is_exact_under_concurrency(self, live_database: Database, kind: str) -> None:
        """Twenty secrets are written concurrently, and three more are allowed."""
        ada, bob = await user(live_database), await user(live_database)
        write = set_secret if kind == "set" else create_secret
        async with live_database.transaction() as session:
            session.add_all(SecretRecord(user_id=ada, name=f"S{number}") for number in range(FREE.secrets - 3))
            session.add(SecretRecord(user_id=bob, name="S0"))

        async def one(number: int) -> BloxError | None:
            try:
                async with live_database.transaction() as session:
                    await write(session, OLD, ada, f"NEW{number}", VALUE)
            except BloxError as error:
                return error
            return None

        refusals = [error for error in await asyncio.gather(*map(one, range(20))) if error is not None]
        assert len(refusals) == 17
        assert all(isinstance(error, Forbidden) for error in refusals)
        details = {"name": "secrets", "limit": 100, "used": 100}
        assert (refusals[0].code, refusals[0].details) == ("secret_limit_reached", details)
        async with live_database.transaction() as session:
            assert len([row for row in await rows(session) if row.user_id == ada]) == FREE.secrets
            await set_secret(session, OLD, ada, "S0", "replaced")
            assert await decrypt_secrets(session, OLD, ada, ["S0"]) == {"S0": "replaced"}
            with pytest.raises(Conflict):
                await create_secret(session, OLD, ada, "S1", VALUE)
            await set_secret(session, OLD, bob, "another", VALUE)

    async def test_concurrent_creations_of_a_secret_succeed_once(self, live_database: Database) -> None:
        ada = await user(live_database)

        async def one(number: int) -> str:
            try:
                async with live_database.transaction() as session:
                    await create_secret(session, OLD, ada, "A", f"value {number}")
            except Conflict as error:
                return error.code
            return f"value {number}"

        answers = await asyncio.gather(*map(one, range(12)))
        assert answers.count("secret_exists") == 11
        (winner,) = set(answers) - {"secret_exists"}
        async with live_database.transaction() as session:
            assert await decrypt_secrets(session, OLD, ada, ["A"]) == {"A": winner}

    async def test_concurrent_updates_of_a_secret_all_succeed(self, live_database: Database) -> None:
        ada = await user(live_database)

        async def one(number: int) -> None:
            async with live_database.transaction() as session:
                await set_secret(session, OLD, ada, "A", f"{number}")

        await asyncio.gather(*map(one, range(12)))
        async with live_database.transaction() as session:
            assert (await decrypt_secrets(session, OLD, ada, ["A"]))["A"] in map(str, range(12))


async def test_no_secret_is_stored_without_a_key(session: AsyncSession) -> None:
    ada = (await factories.create_user(session)).id
    for write in (set_secret, create_secret):
        with pytest.raises(Unavailable, match="API_KEY_ENCRYPTION_KEY") as caught:
            await write(session, None, ada, "A", VALUE)
        assert caught.value.code == "secrets_not_configured"
    assert await rows(session) == []


class TestReseal:
    async def test_rotation_encrypts_readable_secrets_with_the_first_key(self, live_database: Database) -> None:
        """Also if a batch contains no secret that can be decrypted."""
        ada = await user(live_database)
        async with live_database.transaction() as session:
            session.add_all(
                SecretRecord(user_id=ada, name=f"LOST{number}", ciphertext=f"v1.00000000.{number}")
                for number in range(3)
            )
            for number in range(5):
                await set_secret(session, OLD, ada, f"S{number}", f"{VALUE}-{number}")
            await set_secret(session, NEW, ada, "N", VALUE)
            before = {row.name: (row.created_at, row.updated_at) for row in await rows(session)}
        batches: list[RotatedBatch] = []
        after = None
        while True:
            async with live_database.transaction() as session:
                batches.append(await rotate_stale(session, BOTH, 2, after))
            after = batches[-1].last_id
            if after is None:
                break
        assert (sum(batch.rotated for batch in batches), sum(batch.unreadable for batch in batches)) == (5, 3)
        assert len(batches) == 5
        async with live_database.transaction() as session:
            names = {f"S{number}" for number in range(5)}
            assert await decrypt_secrets(session, NEW, ada, names) == {name: f"{VALUE}-{name[1]}" for name in names}
            assert await decrypt_secrets(session, NEW, ada, ["N"]) == {"N": VALUE}
            stored = await rows(session)
        assert {row.name: (row.created_at, row.updated_at) for row in stored} == before, "their values are the same"
        assert {row.ciphertext for row in stored if BOTH.needs_rotation(row.ciphertext)} == {
            f"v1.00000000.{n}" for n in range(3)
        }

    async def test_rotation_can_be_repeated(self, session: AsyncSession) -> None:
        ada = (await factories.create_user(session)).id
        for number in range(3):
            await set_secret(session, OLD, ada, f"S{number}", VALUE)
        first = await rotate_stale(session, BOTH, 2)
        assert (first.rotated, first.unreadable) == (2, 0)
        assert await rotate_stale(session, BOTH, 2) == RotatedBatch(1, 0, None)
        assert await rotate_stale(session, BOTH, 2) == RotatedBatch(0, 0, None)

    async def test_rotation_does_not_overwrite_a_concurrent_change(self, live_database: Database, backend: str) -> None:
        """The rotation reads the row before the change, and writes it after the change."""
        ada = await user(live_database)
        async with live_database.transaction() as session:
            await set_secret(session, OLD, ada, "A", "old value")

        async def rotate_keys() -> RotatedBatch:
            async with live_database.transaction() as session:
                return await rotate_stale(session, BOTH, 10)

        async with live_database.transaction() as session:
            await set_secret(session, NEW, ada, "A", "new value")
            resealing = asyncio.create_task(rotate_keys())
            if backend == "postgresql":  # SQLite has one writer anyway
                await wait_for_lock_wait(live_database, resealing)
        await resealing
        async with live_database.transaction() as session:
            assert await decrypt_secrets(session, NEW, ada, ["A"]) == {"A": "new value"}
