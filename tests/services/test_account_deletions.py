"""Deletions of users: what is effective at the commit, and transactions that run at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.ids import new_id
from bloxserver.models.database import Database, WakeReason
from bloxserver.models.enums import Scope
from bloxserver.models.tables import (
    ApiKeyRecord,
    DeletedUserRecord,
    EmailCountRecord,
    ExecutionRecord,
    FlowRecord,
    IdempotencyKeyRecord,
    SecretRecord,
    SigningSecretRecord,
    TriggerRecord,
    UserApiKeyRecord,
    UserRecord,
)
from bloxserver.plans import get_plan
from bloxserver.queries.flows import require_flow
from bloxserver.services.account_deletions import delete_account, delete_identity
from bloxserver.services.api_keys import NewKey, create_api_key
from bloxserver.services.flows import create_flow
from bloxserver.services.users import AccountDeleted, lock_plan, user_of_claims
from tests import factories
from tests.lock_waits import wait_for_lock_wait
from tests.statements import count_statements

OWNED = (ApiKeyRecord, SecretRecord, UserApiKeyRecord, EmailCountRecord)


async def add_data(session: AsyncSession, user: UserRecord) -> FlowRecord:
    """A flow with a webhook and an execution that a worker runs, and a row in each table of credentials."""
    flow = await factories.create_flow(session, user)
    trigger = await factories.create_trigger(
        session, flow, previous_token=f"previous-{user.id}", own_webhook_url="https://example.com/a-token"
    )
    lease = {"lease": new_id(), "worker_id": "a-worker"}
    await factories.create_execution(session, flow, trigger_id=trigger.id, **lease)
    session.add_all(
        [
            ApiKeyRecord(user_id=user.id, name="key", key_hash=user.id.bytes, hint="", scopes=["read"]),
            SecretRecord(user_id=user.id, name="SECRET"),
            UserApiKeyRecord(user_id=user.id, provider="openai"),
            EmailCountRecord(user_id=user.id, day=now().date()),
            IdempotencyKeyRecord(owner_id=user.id, key_hash=b"k", request_hash=b"r"),
            SigningSecretRecord(trigger_id=trigger.id, hint="", ciphertext=""),
        ]
    )
    await session.commit()
    return flow


async def counts(session: AsyncSession) -> dict[str, int]:
    tables: list[Any] = [*OWNED, IdempotencyKeyRecord, SigningSecretRecord]
    return {
        table.__tablename__: await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        for table in tables
    }


async def test_deletion_erases_the_profile_and_ends_all_access(session: AsyncSession) -> None:
    profile = {
        "email": "ada@example.com",
        "name": "Ada",
        "avatar_url": "https://a",
        "issuer": "https://i",
        "subject": "s",
    }
    user = await factories.create_user(session, **profile, stripe_subscription_id="sub_1")
    other = await factories.create_user(session)
    flow, kept = await add_data(session, user), await add_data(session, other)
    assert await delete_account(session, user.id)
    await session.commit()
    row = (await session.execute(sa.select(UserRecord.__table__).where(UserRecord.id == user.id))).one()
    assert {name: row._mapping[name] for name in profile} == {**dict.fromkeys(profile), "email": ""}
    assert (row.deleted_at is not None, row.stripe_subscription_id) == (True, "sub_1")
    assert set((await counts(session)).values()) == {1}, "those of the other user"
    with pytest.raises(NotFound):
        await require_flow(session, user.id, flow.id)
    await require_flow(session, other.id, kept.id)
    found = TriggerRecord.__table__.c
    tokens = sa.select(found.webhook_token, found.previous_token, found.webhook_url, found.deleted_at)
    tokens = tokens.where(found.flow_id == flow.id)
    token, previous, url, deleted_at = (await session.execute(tokens)).one()
    assert (token, previous, url, deleted_at is not None) == (None, None, None, True)
    lease = sa.select(ExecutionRecord.lease, ExecutionRecord.worker_id)
    assert (await session.execute(lease.where(ExecutionRecord.flow_id == flow.id))).one() == (None, None)
    assert (await session.execute(lease.where(ExecutionRecord.flow_id == kept.id))).one() != (None, None)


async def test_deleted_identity_cannot_sign_in(session: AsyncSession) -> None:
    user = await factories.create_user(session, clerk_id="user_ada")
    await delete_account(session, user.id)
    assert (await user_of_claims(session, {"sub": "user_ada"})).deleted_at is not None
    await session.execute(sa.delete(UserRecord))
    await session.commit()
    with pytest.raises(AccountDeleted):
        await user_of_claims(session, {"sub": "user_ada"})
    assert (await user_of_claims(session, {"sub": "user_bob"})).clerk_id == "user_bob"


async def test_second_deletion_changes_nothing(session: AsyncSession) -> None:
    user = await factories.create_user(session)
    assert await delete_account(session, user.id)
    await session.commit()
    first = await session.scalar(sa.select(UserRecord.deleted_at))
    assert not await delete_account(session, user.id)
    await delete_identity(session, user.clerk_id)
    assert await session.scalar(sa.select(UserRecord.deleted_at)) == first
    assert not await delete_account(session, new_id())


async def test_unknown_identity_gets_a_tombstone_and_no_row(session: AsyncSession) -> None:
    for _ in range(2):
        await delete_identity(session, "user_ada")
        await session.commit()
    assert list(await session.scalars(sa.select(DeletedUserRecord.identity))) == ["user_ada"]
    assert await session.scalar(sa.select(UserRecord.id)) is None


async def test_number_of_statements_does_not_depend_on_the_number_of_flows(
    session: AsyncSession, database_engine: AsyncEngine
) -> None:
    numbers = set()
    for flows in (1, 20):
        user = await factories.create_user(session)
        for _ in range(flows):
            await factories.create_flow(session, user)
        with count_statements(database_engine) as statements:
            await delete_account(session, user.id)
        numbers.add(len(statements))
        await session.commit()
    assert numbers == {17}


async def test_engine_is_woken_after_the_commit(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user = await factories.create_user(session)
        await factories.create_flow(session, user)
    woken: list[frozenset[WakeReason]] = []
    remove = live_database.on_commit(woken.append)
    async with live_database.transaction() as session:
        await delete_account(session, user.id)
        assert woken == []
    remove()
    assert woken == [{WakeReason.DELETION, WakeReason.CANCELLATION, WakeReason.EXECUTION}]


async def started(database: Database, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """The task of a change that waits for the current transaction. SQLite has one writer, so each change waits."""
    task = asyncio.create_task(change)
    if not database.is_sqlite:
        await wait_for_lock_wait(database, task)
    return task


@pytest.mark.parametrize("change", ["flow", "key", "secret"])
async def test_change_that_waits_for_a_deletion_is_refused(live_database: Database, change: str) -> None:
    """A request that was signed in before the deletion must not add rows after it."""
    async with live_database.transaction() as session:
        user = await factories.create_user(session)

    async def add() -> None:
        async with live_database.transaction() as session:
            if change == "flow":
                await create_flow(session, user.id, get_plan("pro"), "Late", None, None)
            elif change == "key":
                await create_api_key(session, user.id, NewKey("late", [Scope.READ]))
            else:
                await lock_plan(session, user.id)

    async with live_database.transaction() as session:
        await delete_account(session, user.id)
        waiting = await started(live_database, add())
    with pytest.raises(AccountDeleted):
        await waiting


async def test_deletion_that_waits_for_a_new_flow_deletes_it(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user = await factories.create_user(session)

    async def delete() -> None:
        async with live_database.transaction() as session:
            assert await delete_account(session, user.id)

    async with live_database.transaction() as session:
        await create_flow(session, user.id, get_plan("pro"), "Early", None, None)
        waiting = await started(live_database, delete())
    await waiting
    async with live_database.transaction(read_only=True) as session:
        assert await session.scalar(sa.select(FlowRecord.deleted_at)) is not None


async def test_first_sign_in_that_waits_for_a_deletion_is_refused(live_database: Database) -> None:
    async def sign_in() -> None:
        async with live_database.transaction() as session:
            await user_of_claims(session, {"sub": "user_ada"})

    async with live_database.transaction() as session:
        await delete_identity(session, "user_ada")
        waiting = await started(live_database, sign_in())
    with pytest.raises(AccountDeleted):
        await waiting
    async with live_database.transaction(read_only=True) as session:
        assert await session.scalar(sa.select(UserRecord.id)) is None


async def test_deletion_that_waits_for_a_first_sign_in_deletes_the_user(live_database: Database) -> None:
    async def delete() -> None:
        async with live_database.transaction() as session:
            await delete_identity(session, "user_ada")

    async with live_database.transaction() as session:
        await user_of_claims(session, {"sub": "user_ada"})
        waiting = await started(live_database, delete())
    await waiting
    async with live_database.transaction(read_only=True) as session:
        deleted_at = await session.scalar(sa.select(UserRecord.deleted_at))
        assert deleted_at is not None
        assert now() - deleted_at < timedelta(minutes=1)
