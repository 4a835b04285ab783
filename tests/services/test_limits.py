"""Limits of the plans, exact under concurrency, and what the dashboard says of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.ids import new_id
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    Tier,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from bloxserver.plans import FREE, get_plan
from bloxserver.queries.usage import Period, period_at, read_usage
from tests.clerk import Clerk, clerk_authentication

ADA = "user_ada"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
PERIOD = Period(TODAY - timedelta(days=10), TODAY + timedelta(days=20))
"""Stripe's, so that no month ends while a test runs."""


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


async def arranged(database: Database, tier: Tier, *, flows: int = 1, slots: dict[int, int] | None = None) -> str:
    """A user of this tier with running flows and with runs counted in slots; returns the id of a flow."""
    user_id, flow_ids = new_id(), [new_id() for _ in range(flows)]
    async with database.transaction() as session:
        session.add(
            UserRecord(
                id=user_id, clerk_id=ADA, tier=tier, current_period_start=PERIOD.start, current_period_end=PERIOD.end
            )
        )
        await session.flush()
        session.add_all(
            FlowRecord(id=flow_id, user_id=user_id, name="A flow", status=FlowStatus.RUNNING) for flow_id in flow_ids
        )
        session.add_all(
            UsageRecord(
                user_id=user_id, period_start=PERIOD.start, period_end=PERIOD.end, slot=slot, workflow_runs=runs
            )
            for slot, runs in (slots or {}).items()
        )
        await session.flush()
        webhook = TriggerRecord(flow_id=flow_ids[0], type=TriggerType.WEBHOOK, name="T", webhook_token="the-token")
        session.add(webhook)
    return str(flow_ids[0])


async def counted(database: Database, table: type[Any]) -> int:
    async with database.transaction() as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


async def runs_by_slot(database: Database) -> dict[int, int]:
    async with database.transaction() as session:
        rows = await session.scalars(sa.select(UsageRecord))
        return {row.slot: row.workflow_runs for row in rows}


async def posted(client: httpx.AsyncClient, times: int, path: str, **options: Any) -> list[httpx.Response]:
    """The answers to as many requests at once."""
    return await asyncio.gather(*(client.post(path, **options) for _ in range(times)))


def statuses(responses: list[httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


class TestFlows:
    async def test_a_free_user_gets_exactly_one(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        """His first requests, which create him too."""
        responses = await posted(
            live_client, 20, "/api/v1/flows", json={"name": "Mine"}, headers=clerk.headers("user_new")
        )
        assert statuses(responses) == {201: 1, 403: 19}
        refusal = next(response.json() for response in responses if response.status_code == 403)
        assert refusal["detail"] == "Flow limit reached (1). Upgrade to create more flows."
        assert (refusal["code"], refusal["details"]) == ("flow_limit_reached", {"limit": 1})
        assert await counted(live_database, FlowRecord) == await counted(live_database, UserRecord) == 1

    async def test_a_pro_user_gets_exactly_a_hundred(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        await arranged(live_database, Tier.PRO, flows=99)
        responses = await posted(live_client, 20, "/api/v1/flows", json={"name": "Mine"}, headers=clerk.headers(ADA))
        assert statuses(responses) == {201: 1, 403: 19}
        assert await counted(live_database, FlowRecord) == 100

    async def test_users_do_not_share_a_limit(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        headers = [clerk.headers(f"user_{number}") for number in range(8)]
        requests = [live_client.post("/api/v1/flows", json={"name": "Mine"}, headers=one) for one in headers * 2]
        assert statuses(await asyncio.gather(*requests)) == {201: 8, 403: 8}
        assert await counted(live_database, FlowRecord) == 8

    @pytest.mark.parametrize(
        ("tier", "flows"),
        [("free", 1), ("pro", 100), ("enterprise", 1000), ("high_frequency", 1000), ("unheard-of", 1)],
    )
    def test_the_limits(self, tier: str, flows: int) -> None:
        assert get_plan(tier).flows == flows


class TestRuns:
    @pytest.mark.parametrize(
        "slots",
        [{0: 990}, dict.fromkeys(range(1, 16), 66), {0: 900, 3: 80, 15: 10}],
        ids=["free all along", "after a downgrade", "both"],
    )
    async def test_the_limit_is_exact(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk, slots: dict[int, int]
    ) -> None:
        """By hand and by webhook, sixty at once with ten to go."""
        flow = await arranged(live_database, Tier.FREE, slots=slots)
        runs, hooks = await asyncio.gather(
            posted(live_client, 30, f"/api/v1/flows/{flow}/executions/run", headers=clerk.headers(ADA)),
            posted(live_client, 30, "/webhooks/the-token", content=b"x"),
        )
        accepted = statuses(runs)[201] + statuses(hooks)[200]
        assert (accepted, statuses(runs + hooks)[403]) == (10, 50)
        assert await counted(live_database, ExecutionRecord) == 10
        counts = await runs_by_slot(live_database)
        assert sum(counts.values()) == 1_000
        assert {slot: runs for slot, runs in counts.items() if slot} == {slot: slots[slot] for slot in slots if slot}
        refusal = next(response.json() for response in runs + hooks if response.status_code == 403)
        assert (refusal["code"], refusal["detail"]) == (
            "run_limit_reached",
            "Run limit reached (1000). Upgrade to run more.",
        )
        assert refusal["details"] == {
            "limit": 1_000,
            "used": 1_000,
            "resetsAt": PERIOD.end.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        usage = (await live_client.get("/api/v1/usage", headers=clerk.headers(ADA))).json()
        assert (usage["runsUsed"], usage["runsPercentage"], usage["estimatedOverage"]) == (1_000, 100, 0)

    async def test_a_new_period_begins_at_nothing(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        flow = await arranged(live_database, Tier.FREE, slots={0: 1_000})
        path = f"/api/v1/flows/{flow}/executions/run"
        assert (await live_client.post(path, headers=clerk.headers(ADA))).status_code == 403
        async with live_database.transaction() as session:
            later = {"current_period_start": PERIOD.start + timedelta(days=1)}
            await session.execute(sa.update(UserRecord).values(later))
        assert (await live_client.post(path, headers=clerk.headers(ADA))).status_code == 201
        assert (await live_client.get("/api/v1/usage", headers=clerk.headers(ADA))).json()["runsUsed"] == 1

    async def test_what_is_refused_is_not_counted(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        flow = await arranged(live_database, Tier.PRO)
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED))
        run = f"/api/v1/flows/{flow}/executions/run"
        assert (await live_client.post(run, headers=clerk.headers(ADA))).status_code == 400
        assert (await live_client.post("/webhooks/the-token")).status_code == 400
        assert await runs_by_slot(live_database) == {}

    async def test_paid_runs_are_spread_and_summed(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        flow = await arranged(live_database, Tier.PRO, slots={0: 99_990})
        path = f"/api/v1/flows/{flow}/executions/run"
        assert statuses(await posted(live_client, 60, path, headers=clerk.headers(ADA))) == {201: 60}
        counts = await runs_by_slot(live_database)
        assert len(counts) > 4
        assert set(counts) <= set(range(16))
        assert sum(counts.values()) == 100_050
        assert await counted(live_database, ExecutionRecord) == 60
        usage = (await live_client.get("/api/v1/usage", headers=clerk.headers(ADA))).json()
        assert (usage["runsUsed"], usage["runsLimit"]) == (100_050, 100_000)
        assert (usage["runsPercentage"], usage["estimatedOverage"]) == (100.05, 0.025)
        assert usage["daysRemaining"] in (19, 20)
        assert usage["periodStart"] == PERIOD.start.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize(
    ("tier", "runs", "limit", "percentage", "overage"),
    [
        ("free", 0, 1_000, 0, 0),
        ("free", 333, 1_000, 33.3, 0),
        ("free", 2_000, 1_000, 200, 0),
        ("pro", 100_000, 100_000, 100, 0),
        ("pro", 100_001, 100_000, 100, 0.0005),
        ("pro", 101_000, 100_000, 101, 0.5),
        ("pro", 3_100_000, 100_000, 3_100, 1_500),
        ("enterprise", 5_000_000, None, 0, 0),
        ("high_frequency", 7, None, 0, 0),
        ("unheard-of", 5, FREE.runs, 0.5, 0),
    ],
)
async def test_the_dashboard(
    live_database: Database, tier: str, runs: int, limit: int | None, percentage: float, overage: float
) -> None:
    async with live_database.transaction() as session:
        user = UserRecord(clerk_id=ADA)
        session.add(user)
        await session.flush()
        for start, slot, count in ((PERIOD.start, 0, runs - runs // 3), (PERIOD.start, 9, runs // 3), (TODAY, 0, 77)):
            tokens = {"llm_tokens_in": 3, "llm_tokens_out": 4}
            session.add(UsageRecord(user_id=user.id, period_start=start, slot=slot, workflow_runs=count, **tokens))
        await session.flush()
        usage = await read_usage(session, user.id, tier, PERIOD, TODAY + timedelta(hours=5))
    assert (usage.runs_used, usage.runs_limit) == (runs, limit)
    assert (usage.runs_percentage, usage.estimated_overage) == (percentage, overage)
    assert (usage.tokens_used, usage.days_remaining) == (14, 20)
    assert (usage.period_start, usage.period_end) == (PERIOD.start, PERIOD.end)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


JUNE = Period(utc(2026, 6, 1), utc(2026, 7, 1))
STRIPE = (utc(2026, 5, 20, 8, 30), utc(2026, 6, 20, 8, 30))


@pytest.mark.parametrize(
    ("now", "known", "expected"),
    [
        (utc(2026, 6, 10), STRIPE, Period(*STRIPE)),
        (STRIPE[0], STRIPE, Period(*STRIPE)),
        (STRIPE[1] - timedelta(microseconds=1), STRIPE, Period(*STRIPE)),
        (STRIPE[1], STRIPE, JUNE),
        (utc(2026, 6, 30, 23, 59, 59), STRIPE, JUNE),
        (utc(2026, 6, 10), (None, None), JUNE),
        (utc(2026, 6, 10), (STRIPE[0], None), JUNE),
        (utc(2026, 6, 10), (None, STRIPE[1]), JUNE),
        (utc(2026, 6, 10), (utc(2026, 6, 11), utc(2026, 7, 11)), JUNE),
        (utc(2026, 6, 10), (datetime(2026, 6, 1), datetime(2026, 7, 1)), JUNE),  # noqa: DTZ001
        (utc(2026, 6, 1), (None, None), JUNE),
        (utc(2026, 12, 31, 23, 59, 59), (None, None), Period(utc(2026, 12, 1), utc(2027, 1, 1))),
        (utc(2027, 1, 1), (None, None), Period(utc(2027, 1, 1), utc(2027, 2, 1))),
        (utc(2026, 1, 31), (None, None), Period(utc(2026, 1, 1), utc(2026, 2, 1))),
        (utc(2028, 2, 29), (None, None), Period(utc(2028, 2, 1), utc(2028, 3, 1))),
    ],
)
def test_the_period(now: datetime, known: tuple[datetime | None, datetime | None], expected: Period) -> None:
    assert period_at(now, *known) == expected
