"""The rows of a deleted user are deleted, or anonymised, in the background."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.account_emails.outbox import enqueue
from bloxserver.engine.background.account_deletions import finish_user
from bloxserver.engine.background.deletions import Deletions
from bloxserver.ids import new_id
from bloxserver.models.database import Base, Database
from bloxserver.models.tables import ExecutionStepRecord, FlowRecord, TriggerRecord, UsageRecord, UserRecord
from bloxserver.queries.users import find_users, read_users
from bloxserver.services.account_deletions import delete_account
from bloxserver.settings import Settings
from tests.clerk import override_settings
from tests.deleting import add_executions
from tests.engine.retention_world import until
from tests.engine.running_engine import running_engine
from tests.factories import create_flow, create_user
from tests.models import migrating

NOT_OF_USERS = {
    "llm_provider_leases",
    "llm_providers",
    "stripe_events",
    "workers",
    "rate_counters",
    "execution_totals",
    "execution_series",
}
"""Tables in which `migrating.fill` inserts a row that belongs to no user, or to no flow of a user."""
KEPT = {"audit_events", "billing_periods", "deleted_users", "meter_reports", "storage_samples"}


async def fill(database: Database) -> Any:
    """A row in every table for one user, who is then deleted. Returns the user's id."""
    async with database.transaction() as session:
        await migrating.fill(session)
        for table in (UserRecord, FlowRecord, TriggerRecord):
            await session.execute(sa.update(table).values(deleted_at=None))
        await session.execute(sa.update(ExecutionStepRecord).values(sequence=1))
        user_id = await session.scalar(sa.select(UserRecord.id))
        assert user_id is not None
        assert await delete_account(session, user_id)
    return user_id


async def left(database: Database) -> set[str]:
    """The tables with rows, without those that are not of users."""
    async with database.transaction(read_only=True) as session:
        found = {
            table.name
            for table in Base.metadata.sorted_tables
            if await session.scalar(sa.select(sa.func.count()).select_from(table))
        }
    return found - NOT_OF_USERS


async def finish(database: Database) -> int:
    result = await Deletions(database, min_interval_seconds=0.0).finish()
    assert result.is_complete
    return result.users


async def test_purge_deletes_the_rows_of_every_table(live_database: Database) -> None:
    await fill(live_database)
    assert await finish(live_database) == 1
    assert await left(live_database) == KEPT
    assert await finish(live_database) == 0


async def test_anonymous_user_keeps_the_usage_alone(live_database: Database) -> None:
    user_id = await fill(live_database)
    async with live_database.transaction() as session:
        # A worker had read the user before the deletion.
        await enqueue(session, [(user_id, Email(EmailKind.USAGE_LIMIT, "late"))])
    with override_settings(USER_DELETION="anonymise"):
        assert await finish(live_database) == 1
        assert await finish(live_database) == 0
    assert await left(live_database) == KEPT | {"users", "usage_records"}
    async with live_database.transaction(read_only=True) as session:
        user = (await session.execute(sa.select(UserRecord.__table__))).one()
        assert (user.id, user.email, user.name, user.avatar_url, user.issuer, user.subject) == (
            user_id, "", None, None, None, None
        )  # fmt: skip
        assert user.clerk_id.startswith("deleted:")
        assert await session.scalar(sa.select(UsageRecord.user_id)) == user_id
        assert await read_users(session) == []
        for reference in (str(user_id), user.clerk_id):
            assert await find_users(session, reference) == []


async def test_other_users_keep_everything(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user, other = await create_user(session), await create_user(session)
        for owner in (user, other):
            await add_executions(session, await create_flow(session, owner), 3, steps=2)
        await delete_account(session, user.id)
    assert await finish(live_database) == 1
    async with live_database.transaction(read_only=True) as session:
        assert list(await session.scalars(sa.select(UserRecord.id))) == [other.id]
        assert list(await session.scalars(sa.select(FlowRecord.user_id))) == [other.id]


@pytest.fixture
async def user_with_flows(live_database: Database) -> UserRecord:
    async with live_database.transaction() as session:
        user = await create_user(session)
        for _ in range(2):
            await add_executions(session, await create_flow(session, user), 600, steps=1)
    async with live_database.transaction() as session:
        await delete_account(session, user.id)
    return user


async def user_ids(database: Database) -> list[Any]:
    async with database.transaction(read_only=True) as session:
        return list(await session.scalars(sa.select(UserRecord.id)))


async def test_user_is_not_deleted_before_their_flows(live_database: Database, user_with_flows: UserRecord) -> None:
    """Deleting the user would delete all their executions in one transaction."""
    assert not await finish_user(live_database, user_with_flows.id)
    assert await user_ids(live_database) == [user_with_flows.id]


async def test_interrupted_deletion_is_continued(live_database: Database, user_with_flows: UserRecord) -> None:
    class Crash(BaseException):
        pass

    class Interrupted(Deletions):
        async def _finish_user(self, *_: Any) -> bool:
            raise Crash

    with pytest.raises(Crash):
        await Interrupted(live_database, min_interval_seconds=0.0).finish()
    async with live_database.transaction(read_only=True) as session:
        assert await session.scalar(sa.select(FlowRecord.id)) is None
    assert await finish(live_database) == 1
    assert await user_ids(live_database) == []


async def test_running_engine_completes_a_deletion_without_waiting_for_its_interval(
    live_settings: Settings, live_database: Database
) -> None:
    async with running_engine(live_settings, live_database):
        async with live_database.transaction() as session:
            user = await create_user(session)
            await add_executions(session, await create_flow(session, user), 20, steps=1)
        async with live_database.transaction() as session:
            await delete_account(session, user.id)

        async def is_complete() -> bool:
            return await user_ids(live_database) == []

        await until(is_complete, interval_seconds=0.02)


async def test_subscription_is_cancelled_before_its_id_is_deleted(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user = await create_user(session, stripe_subscription_id="sub_1")
        await delete_account(session, user.id)
    with override_settings(STRIPE_SECRET_KEY="sk_live_a-key-of-this-account"):
        assert await finish(live_database) == 0
        assert await user_ids(live_database) == [user.id]
        async with live_database.transaction() as session:
            await session.execute(sa.update(UserRecord).values(stripe_subscription_id=None))
        assert await finish(live_database) == 1
    assert await user_ids(live_database) == []


async def test_subscription_without_billing_delays_nothing(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user = await create_user(session, stripe_subscription_id="sub_1")
        await delete_account(session, user.id)
    assert await finish(live_database) == 1
    assert await user_ids(live_database) == []


async def test_user_who_was_not_deleted_is_never_finished(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user = await create_user(session)
    for kind in ("purge", "anonymise"):
        with override_settings(USER_DELETION=kind):
            assert not await finish_user(live_database, user.id)
            assert not await finish_user(live_database, new_id())
    assert await user_ids(live_database) == [user.id]


async def test_pending_users_are_found_by_an_index(live_database: Database) -> None:
    async with live_database.transaction() as session:
        plan = await _plan_of_pending(session)
    assert "ix_users_deleting" in plan


async def _plan_of_pending(session: AsyncSession) -> str:
    from bloxserver.models.tables import DELETING

    query = f"SELECT id FROM users WHERE {DELETING} ORDER BY deleted_at LIMIT 10"  # noqa: S608
    if session.get_bind().dialect.name == "sqlite":
        rows = await session.execute(sa.text(f"EXPLAIN QUERY PLAN {query}"))
    else:
        await session.execute(sa.text("SET LOCAL enable_seqscan = off"))
        rows = await session.execute(sa.text(f"EXPLAIN {query}"))
    return repr(rows.all())
