"""Limits of the plans: exact under concurrency."""

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
from bloxserver.plans import get_plan
from bloxserver.queries.usage import Period
from tests.clerk import Clerk, clerk_authentication

ADA = "user_ada"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
PERIOD = Period(TODAY - timedelta(days=10), TODAY + timedelta(days=20))
"""A billing period of Stripe, so that no month ends while a test runs."""


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with clerk_authentication() as clerk:
        yield clerk


async def create_user_with_flows(
    database: Database, tier: Tier, *, flows: int = 1, slots: dict[int, int] | None = None
) -> str:
    """Create a user of this tier with running flows and with runs counted in slots; returns the id of a flow."""
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


async def post_concurrently(client: httpx.AsyncClient, times: int, path: str, **options: Any) -> list[httpx.Response]:
    """Send the same request `times` times at once; returns the responses."""
    return await asyncio.gather(*(client.post(path, **options) for _ in range(times)))


def statuses(responses: list[httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


class TestFlows:
    async def test_concurrent_requests_of_a_free_user_create_one_flow(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        """They are the first requests of the user, and create their row too."""
        responses = await post_concurrently(
            live_client, 20, "/api/v1/flows", json={"name": "Mine"}, headers=clerk.headers("user_new")
        )
        assert statuses(responses) == {201: 1, 403: 19}
        refusal = next(response.json() for response in responses if response.status_code == 403)
        assert refusal["detail"] == "Flow limit reached (1). Upgrade to create more flows."
        assert (refusal["code"], refusal["details"]) == ("flow_limit_reached", {"limit": 1})
        assert await counted(live_database, FlowRecord) == await counted(live_database, UserRecord) == 1

    async def test_concurrent_requests_of_a_pro_user_create_flows_up_to_a_hundred(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        await create_user_with_flows(live_database, Tier.PRO, flows=99)
        responses = await post_concurrently(
            live_client, 20, "/api/v1/flows", json={"name": "Mine"}, headers=clerk.headers(ADA)
        )
        assert statuses(responses) == {201: 1, 403: 19}
        assert await counted(live_database, FlowRecord) == 100

    async def test_limit_is_counted_for_each_user(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        headers = [clerk.headers(f"user_{number}") for number in range(8)]
        requests = [live_client.post("/api/v1/flows", json={"name": "Mine"}, headers=one) for one in headers * 2]
        assert statuses(await asyncio.gather(*requests)) == {201: 8, 403: 8}
        assert await counted(live_database, FlowRecord) == 8

    @pytest.mark.parametrize(
        ("tier", "flows"),
        [("free", 1), ("pro", 100), ("enterprise", 1000), ("high_frequency", 1000), ("unknown", 1)],
    )
    def test_tier_limits_the_number_of_flows(self, tier: str, flows: int) -> None:
        assert get_plan(tier).flows == flows


class TestRuns:
    @pytest.mark.parametrize(
        "slots",
        [{0: 990}, dict.fromkeys(range(1, 16), 66), {0: 900, 3: 80, 15: 10}],
        ids=["free from the start", "after a downgrade", "both"],
    )
    async def test_concurrent_runs_reach_the_limit_exactly(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk, slots: dict[int, int]
    ) -> None:
        """Sixty manual and webhook runs at once, of which ten are below the limit."""
        flow = await create_user_with_flows(live_database, Tier.FREE, slots=slots)
        runs, hooks = await asyncio.gather(
            post_concurrently(live_client, 30, f"/api/v1/flows/{flow}/executions/run", headers=clerk.headers(ADA)),
            post_concurrently(live_client, 30, "/webhooks/the-token", content=b"x"),
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

    async def test_new_period_starts_with_no_runs(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        flow = await create_user_with_flows(live_database, Tier.FREE, slots={0: 1_000})
        path = f"/api/v1/flows/{flow}/executions/run"
        assert (await live_client.post(path, headers=clerk.headers(ADA))).status_code == 403
        async with live_database.transaction() as session:
            later = {"current_period_start": PERIOD.start + timedelta(days=1)}
            await session.execute(sa.update(UserRecord).values(later))
        assert (await live_client.post(path, headers=clerk.headers(ADA))).status_code == 201
        assert (await live_client.get("/api/v1/usage", headers=clerk.headers(ADA))).json()["runsUsed"] == 1

    async def test_refused_runs_are_not_counted(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        flow = await create_user_with_flows(live_database, Tier.PRO)
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STOPPED))
        run = f"/api/v1/flows/{flow}/executions/run"
        assert (await live_client.post(run, headers=clerk.headers(ADA))).status_code == 400
        assert (await live_client.post("/webhooks/the-token")).status_code == 400
        assert await runs_by_slot(live_database) == {}

    async def test_runs_of_a_paid_tier_are_counted_in_several_slots(
        self, live_client: httpx.AsyncClient, live_database: Database, clerk: Clerk
    ) -> None:
        flow = await create_user_with_flows(live_database, Tier.PRO, slots={0: 99_990})
        path = f"/api/v1/flows/{flow}/executions/run"
        assert statuses(await post_concurrently(live_client, 60, path, headers=clerk.headers(ADA))) == {201: 60}
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
