"""Counting the emails that users send through the mail server of the installation."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from bloxserver.errors import LimitReached
from bloxserver.models.database import Database
from bloxserver.models.tables import EmailCountRecord, Tier, UserRecord
from bloxserver.plans import PLANS
from bloxserver.services.emails import count_emails
from tests.factories import create_user

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
LIMIT = PLANS["free"].emails_per_day


async def a_user(database: Database, tier: Tier = Tier.FREE) -> UserRecord:
    async with database.sessions() as session:
        return await create_user(session, tier=tier)


async def count(database: Database, user: UserRecord, number: int, moment: datetime = NOON) -> bool:
    """Returns whether the emails may be sent."""
    try:
        async with database.transaction() as session:
            await count_emails(session, user.id, number, moment)
    except LimitReached:
        return False
    return True


async def counted(database: Database, user: UserRecord) -> int | None:
    async with database.sessions() as session:
        return await session.scalar(sa.select(EmailCountRecord.emails).where(EmailCountRecord.user_id == user.id))


@pytest.mark.parametrize(("number", "accepted"), [(LIMIT - 1, True), (LIMIT, True), (LIMIT + 1, False)])
@pytest.mark.parametrize("earlier", [0, 1, 60])
async def test_limit_is_exact(live_database: Database, earlier: int, number: int, accepted: bool) -> None:
    user, other = await a_user(live_database), await a_user(live_database)
    assert not earlier or await count(live_database, user, earlier)
    assert await count(live_database, user, number - earlier) is accepted
    assert (await counted(live_database, user) or 0) == (number if accepted else earlier)
    assert await count(live_database, other, LIMIT), "users do not share a limit"


async def test_error_has_limit_use_and_a_hint(live_database: Database) -> None:
    user = await a_user(live_database)
    await count(live_database, user, 99)
    with pytest.raises(LimitReached) as caught:
        async with live_database.transaction() as session:
            await count_emails(session, user.id, 2, NOON)
    assert caught.value.code == "emails_per_day_limit_reached"
    assert caught.value.details == {"name": "emails_per_day", "limit": 100, "used": 99}
    assert caught.value.message == (
        "The limit of 100 emails per day is reached (in use: 99). Send the rest tomorrow (UTC), use a mail server of "
        "your own (server in the config), or upgrade your plan."
    )


async def test_count_begins_again_every_day(live_database: Database) -> None:
    user = await a_user(live_database)
    assert await count(live_database, user, LIMIT)
    assert not await count(live_database, user, 1, NOON + timedelta(hours=11))
    assert await count(live_database, user, 1, NOON + timedelta(hours=12))
    assert await counted(live_database, user) == 1


async def test_concurrent_emails_are_counted_exactly(live_database: Database) -> None:
    user = await a_user(live_database)
    assert await count(live_database, user, LIMIT - 5)
    accepted = await asyncio.gather(*(count(live_database, user, 1) for _ in range(10)))
    assert sorted(accepted) == [False] * 5 + [True] * 5
    assert await counted(live_database, user) == LIMIT


async def test_limit_depends_on_the_tier(live_database: Database) -> None:
    user = await a_user(live_database, Tier.PRO)
    assert await count(live_database, user, PLANS["pro"].emails_per_day)
    assert not await count(live_database, user, 1)


async def test_operator_may_set_another_limit(live_database: Database) -> None:
    user = await a_user(live_database)
    async with live_database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(limits={"emails_per_day": 2}))
    assert await count(live_database, user, 2)
    assert not await count(live_database, user, 1)
