"""Counting the tokens of language models."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import Tier, UsageRecord, UserRecord
from bloxserver.plans import FREE, MAX_LIMIT, get_plan
from bloxserver.queries.usage import Period, read_usage
from bloxserver.services.usage import SLOTS, count_run, count_tokens
from tests.factories import create_user
from tests.statements import count_statements

START = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = Period(START, START + timedelta(days=31))


async def a_user(database: Database, tier: Tier) -> UserRecord:
    async with database.sessions() as session:
        return await create_user(session, tier=tier)


async def count(database: Database, user: UserRecord, tokens_in: int, tokens_out: int, period: Period = PERIOD) -> None:
    async with database.transaction() as session:
        await count_tokens(session, user.id, period, tokens_in, tokens_out)


async def rows(database: Database) -> list[UsageRecord]:
    async with database.sessions() as session:
        return list(await session.scalars(sa.select(UsageRecord).order_by(UsageRecord.period_start, UsageRecord.slot)))


@pytest.mark.parametrize("tier", Tier)
async def test_concurrent_token_counts_are_all_added(live_database: Database, tier: Tier) -> None:
    user = await a_user(live_database, tier)
    await asyncio.gather(*(count(live_database, user, number, 1) for number in range(40)))
    counted = await rows(live_database)
    assert sum(row.llm_tokens_in for row in counted) == sum(range(40))
    assert sum(row.llm_tokens_out for row in counted) == 40
    slots = {row.slot for row in counted}
    if tier is Tier.FREE:
        assert slots == {0}
    else:
        # Several slots, so that the counts do not wait for the same row lock.
        assert len(slots) > 1
        assert slots <= set(range(SLOTS))


async def test_runs_and_tokens_share_rows_and_periods_do_not(live_database: Database) -> None:
    user, other = await a_user(live_database, Tier.FREE), await a_user(live_database, Tier.FREE)
    async with live_database.transaction() as session:
        await count_run(session, user.id, FREE, PERIOD, START)
    await count(live_database, user, 3, 4)
    await count(live_database, user, 10, 20, Period(PERIOD.end, PERIOD.end + timedelta(days=28)))
    await count(live_database, other, 100, 200)
    async with live_database.transaction() as session:
        usage = await read_usage(session, user.id, FREE, PERIOD, START)
    assert (usage.runs_used, usage.tokens_used) == (1, 7)
    counted = [(row.workflow_runs, row.llm_tokens_in, row.llm_tokens_out) for row in await rows(live_database)]
    assert sorted(counted) == [(0, 10, 20), (0, 100, 200), (1, 3, 4)]


@pytest.mark.parametrize("limit", [str(MAX_LIMIT), "1e19", "1e300", "9" * 300])
async def test_runs_are_counted_with_the_largest_limits(live_database: Database, limit: str) -> None:
    user = await a_user(live_database, Tier.FREE)
    plan = get_plan("free", json.loads(f'{{"runs": {limit}}}'))
    async with live_database.transaction() as session:
        await count_run(session, user.id, plan, PERIOD, START)
    assert [row.workflow_runs for row in await rows(live_database)] == [1]


async def test_tokens_are_counted_in_one_statement(live_database: Database) -> None:
    user = await a_user(live_database, Tier.PRO)
    with count_statements(live_database.engine) as statements:
        await count(live_database, user, 1, 2)
    assert len(statements) == 1
    [row] = await rows(live_database)
    assert (row.period_start, row.period_end, row.workflow_runs) == (PERIOD.start, PERIOD.end, 0)
    assert row.created_at <= now()
