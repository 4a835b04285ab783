"""The limit of stored bytes, and the number of versions: just below, at and above the limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.background.schedule_firing import fire_schedule
from bloxserver.models.enums import Scope
from bloxserver.models.stored_bytes import ROW_BYTES
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowVersionRecord,
    StoredBytesRecord,
    Tier,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from bloxserver.plans import PLANS
from bloxserver.queries.triggers import read_due_schedules
from bloxserver.queries.usage import read_stored_bytes
from bloxserver.services.api_keys import NewKey, create_api_key
from tests.api.contract import API, assert_problem, covers, path_of
from tests.clerk import override_settings
from tests.factories import create_execution, create_flow, create_trigger

Request = Callable[[], Awaitable[httpx.Response]]
HINT = "Delete flows that are no longer needed, wait until old executions expire, or upgrade."
OFFSETS = [(1, True), (0, False), (-1, False)]
"""The limit minus the stored bytes, and whether a request is accepted."""


class World:
    """A running flow with a version, a webhook, and an execution that has failed."""

    def __init__(self, client: httpx.AsyncClient, session: AsyncSession, user: UserRecord) -> None:
        self.client = client
        self.session = session
        self.user = user
        self.numbers = count(1)

    async def arrange(self) -> None:
        self.flow = await create_flow(self.session, self.user, latest_version=1)
        self.session.add(FlowVersionRecord(flow_id=self.flow.id, number=1, organism_yaml=self.flow.organism_yaml))
        self.webhook = await create_trigger(self.session, self.flow)
        self.failed = await create_execution(self.session, self.flow, status=ExecutionStatus.ERROR)

    async def stored(self) -> int:
        return await read_stored_bytes(self.session, self.user.id)

    async def limit(self, **limits: Any) -> None:
        self.user.limits = limits
        await self.session.commit()

    async def rows(self) -> tuple[int, ...]:
        """The numbers of flows, versions and executions, and of counted runs."""
        counts = [
            await self.session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in (FlowRecord, FlowVersionRecord, ExecutionRecord)
        ]
        runs = await self.session.scalar(sa.select(sa.func.coalesce(sa.func.sum(UsageRecord.workflow_runs), 0)))
        return (*counts, int(runs or 0))

    def requests(self) -> dict[str, Request]:
        """Requests that store more."""
        client, path = self.client, path_of(self.flow)
        return {
            "run": lambda: client.post(f"{path}/executions/run", json={"inputPayload": "x"}),
            "webhook": lambda: client.post(f"/webhooks/{self.webhook.webhook_token}", content=b"x"),
            "retry": lambda: client.post(f"{path}/executions/{self.failed.id}/retry"),
            "create": lambda: client.post(f"{API}/flows", json={"name": "Another"}),
            "change": lambda: client.patch(path, json={"organismYaml": "changed"}),
        }


@pytest.fixture
async def world(client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord) -> World:
    world = World(client, session, dev_user)
    await world.arrange()
    return world


@covers("limits.stored-bytes")
@pytest.mark.parametrize(("offset", "accepted"), OFFSETS)
@pytest.mark.parametrize("name", ["run", "webhook", "retry", "create", "change"])
async def test_request_that_stores_more_is_refused_at_the_users_own_limit(
    world: World, name: str, offset: int, accepted: bool
) -> None:
    stored = await world.stored()
    await world.limit(stored_bytes=stored + offset)
    before = await world.rows()
    response = await world.requests()[name]()
    if accepted:
        assert response.is_success, response.json()
        assert await world.rows() != before
        return
    limit = stored + offset
    message = f"The limit of {limit} stored bytes is reached (in use: {stored}). {HINT}"
    details = {"name": "stored_bytes", "limit": limit, "used": stored}
    assert_problem(response, 403, "stored_bytes_limit_reached", message, details)
    assert await world.rows() == before


@pytest.mark.parametrize(("offset", "accepted"), OFFSETS)
async def test_default_limit_is_that_of_the_tier(world: World, offset: int, accepted: bool) -> None:
    limit = PLANS["free"].stored_bytes
    world.user.tier = Tier.FREE
    fill = limit - offset - await world.stored()
    world.session.add(StoredBytesRecord(user_id=world.user.id, source="executions", slot=-1, bytes=fill))
    await world.session.commit()
    assert (await world.requests()["webhook"]()).is_success == accepted
    world.user.tier = Tier.PRO
    await world.session.commit()
    assert (await world.requests()["webhook"]()).is_success


async def test_changes_that_store_no_version_are_accepted_above_the_limit(world: World) -> None:
    await world.limit(stored_bytes=0)
    path = path_of(world.flow)
    for body in ({"name": "Renamed"}, {"organismYaml": world.flow.organism_yaml}, {"canvasState": None}, {}):
        assert (await world.client.patch(path, json=body)).status_code == 200
    assert (await world.client.post(f"{path}/stop")).status_code == 200
    assert (await world.client.delete(path)).status_code == 204
    assert await world.stored() == 0


async def test_rows_written_by_hand_are_listed_and_counted_above_the_limit(world: World) -> None:
    await world.limit(stored_bytes=0)
    before = await world.stored()
    execution = await create_execution(world.session, world.flow, input_payload="by hand")
    page = (await world.client.get(f"{path_of(world.flow)}/executions")).json()
    assert [item["id"] for item in page["items"]] == [str(execution.id), str(world.failed.id)]
    usage = (await world.client.get(f"{API}/usage")).json()
    assert (usage["storedBytes"], usage["storedBytesLimit"]) == (before + ROW_BYTES + 7, 0)


@pytest.mark.parametrize(("offset", "accepted"), OFFSETS)
async def test_schedule_skips_a_run_at_the_limit_and_fires_again_later(
    world: World, offset: int, accepted: bool
) -> None:
    moment = now()
    schedule = {"type": TriggerType.SCHEDULE, "config": {"cron": "* * * * *"}, "next_fire_at": moment}
    await create_trigger(world.session, world.flow, **schedule)
    await world.limit(stored_bytes=await world.stored() + offset)
    [due] = await read_due_schedules(world.session, moment, 10)
    assert await fire_schedule(world.session, due, moment) == accepted
    assert (await world.rows())[2:] == ((2, 1) if accepted else (1, 0))
    assert await read_due_schedules(world.session, moment, 10) == []


async def versions(session: AsyncSession) -> list[int]:
    return list(await session.scalars(sa.select(FlowVersionRecord.number).order_by(FlowVersionRecord.number)))


async def change(world: World, times: int) -> None:
    for _ in range(times):
        body = {"organismYaml": f"definition {next(world.numbers)}"}
        assert (await world.client.patch(path_of(world.flow), json=body)).status_code == 200


@covers("versions.limit")
async def test_oldest_version_is_deleted_beyond_the_number_of_versions(world: World) -> None:
    await world.limit(versions_per_flow=3)
    await change(world, 1)
    assert await versions(world.session) == [1, 2]
    await change(world, 1)
    assert await versions(world.session) == [1, 2, 3]
    await change(world, 1)
    assert await versions(world.session) == [2, 3, 4]


async def test_versions_in_use_are_kept(world: World) -> None:
    """Version 1 is active, and version 2 was run by an execution that has ended."""
    await change(world, 2)
    ids = (await world.session.scalars(sa.select(FlowVersionRecord.id).order_by(FlowVersionRecord.number))).all()
    active = {"active_version_id": ids[0], "active_version": 1}
    await world.session.execute(sa.update(FlowRecord).values(active))
    await world.session.execute(sa.update(ExecutionRecord).values(flow_version_id=ids[1]))
    await world.limit(versions_per_flow=1)
    await change(world, 1)
    assert await versions(world.session) == [1, 2, 4]
    await change(world, 1)
    assert await versions(world.session) == [1, 2, 5]


async def test_one_change_deletes_a_bounded_number_of_versions(world: World) -> None:
    await change(world, 14)
    await world.limit(versions_per_flow=2)
    await change(world, 1)
    assert await versions(world.session) == [11, 12, 13, 14, 15, 16]
    await change(world, 1)
    assert await versions(world.session) == [16, 17]


async def test_number_of_versions_follows_the_tier_by_default(world: World) -> None:
    limit = PLANS["pro"].versions_per_flow
    rows = [{"flow_id": world.flow.id, "number": number, "organism_yaml": "x"} for number in range(2, limit + 1)]
    await world.session.execute(sa.insert(FlowVersionRecord), rows)
    await world.session.commit()
    await change(world, 1)
    assert await versions(world.session) == list(range(2, limit + 2))


@covers("limits.own")
@pytest.mark.parametrize(("limit", "status"), [(2, 201), (1, 403), (0, 403)])
async def test_own_limit_of_flows_replaces_that_of_the_tier(world: World, limit: int, status: int) -> None:
    await world.limit(flows=limit)
    response = await world.requests()["create"]()
    assert response.status_code == status
    if status == 403:
        assert response.json()["detail"] == f"Flow limit reached ({limit}). Upgrade to create more flows."


@pytest.mark.parametrize(("limit", "status"), [(2, 200), (1, 403), (0, 403)])
async def test_own_limit_of_runs_replaces_that_of_the_tier(world: World, limit: int, status: int) -> None:
    await world.limit(runs=limit, overage_usd_per_thousand=None)
    await world.client.post(f"{path_of(world.flow)}/executions/run")
    assert (await world.requests()["webhook"]()).status_code == status


async def test_own_limit_of_secrets_replaces_that_of_the_tier(world: World) -> None:
    await world.limit(secrets=2)
    with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
        statuses = [
            (await world.client.post(f"{API}/secrets", json={"name": name, "value": "x"})).status_code for name in "ABC"
        ]
    assert statuses == [201, 201, 403]


@covers("usage.limits")
async def test_usage_lists_the_limits(world: World) -> None:
    await create_trigger(world.session, world.flow)
    await create_api_key(world.session, world.user.id, NewKey("A key", [Scope.READ]))
    await world.limit(secrets=7, stored_bytes=10**12)
    await world.client.post(f"{path_of(world.flow)}/executions/run")
    usage = (await world.client.get(f"{API}/usage")).json()
    stored = await world.stored()
    assert (usage["storedBytes"], usage["storedBytesLimit"]) == (stored, 10**12)
    assert usage["limits"] == [
        {"name": "runs", "used": 1, "limit": 100_000},
        {"name": "flows", "used": 1, "limit": 100},
        {"name": "triggers_per_flow", "used": 2, "limit": 50},
        {"name": "secrets", "used": 0, "limit": 7},
        {"name": "api_keys", "used": 1, "limit": 100},
        {"name": "stored_bytes", "used": stored, "limit": 10**12},
    ]


@pytest.mark.parametrize("limits", [[1], "text", 5, {"stored_bytes": "many", "unknown": 1}])
async def test_unusable_limits_are_ignored(world: World, limits: Any) -> None:
    world.user.limits = limits
    await world.session.commit()
    assert (await world.client.get(f"{API}/usage")).json()["storedBytesLimit"] == PLANS["pro"].stored_bytes
    assert (await world.requests()["webhook"]()).status_code == 200
