"""Deliveries of webhooks and their redelivery, on both routes that receive webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.enums import FlowStatus, Tier
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    TriggerRecord,
    UsageRecord,
    UserRecord,
    WebhookDeliveryRecord,
)
from bloxserver.queries.webhook_deliveries import MAX_DELIVERIES
from bloxserver.services import webhook_deliveries
from tests.api.contract import API, assert_problem, covers
from tests.api.webhook_sender import BODY, GITHUB, Webhook, count, webhook
from tests.clerk import override_settings


@pytest.fixture(autouse=True)
def encryption_key() -> Iterator[None]:
    with override_settings(API_KEY_ENCRYPTION_KEY="a-key-of-an-operator-93d4a86b1f7c"):
        yield


async def set_flow(database: Database, **values: Any) -> None:
    async with database.transaction() as session:
        await session.execute(sa.update(FlowRecord).values(**values))


def outline(delivery: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(delivery[name] for name in ("outcome", "status", "code", "bytes"))


@covers("deliveries.list")
async def test_deliveries_are_listed_newest_first(caller: httpx.AsyncClient, live_database: Database) -> None:
    made = await webhook(caller, live_database, GITHUB)
    before = now()
    accepted = (await made.send()).json()["executionId"]
    assert (await caller.post(made.url, content=b"unsigned")).status_code == 401
    assert (await made.send(b"\xff\x00\xff\x00", Content_Type="image/png")).status_code == 200
    assert (await made.send(b"keyed", Idempotency_Key="k")).status_code == 200
    assert (await made.send(b"keyed", Idempotency_Key="k")).status_code == 200
    assert (await made.send(b"other", Idempotency_Key="k")).status_code == 422
    assert (await made.send(b"")).status_code == 200
    await set_flow(live_database, status=FlowStatus.STOPPED)
    assert (await made.send(b"12345")).status_code == 400
    found = await made.deliveries()
    assert [outline(delivery) for delivery in found] == [
        ("rejected", 400, "flow_not_running", 5),
        ("accepted", 200, None, 0),
        ("rejected", 422, "idempotency_key_reused", 5),
        ("repeated", 200, "repeated", 5),
        ("accepted", 200, None, 5),
        ("accepted", 200, None, 4),
        ("rejected", 401, "invalid_signature", 8),
        ("accepted", 200, None, len(BODY)),
    ]
    assert found[0]["message"] == "Flow is not running (status: stopped)"
    assert found[-2]["message"] == "The signature is missing or malformed"
    assert (found[-1]["id"], found[-1]["executionId"], found[-1]["message"]) == (accepted, accepted, None)
    assert found[3]["executionId"] == found[4]["executionId"]
    times = [datetime.fromisoformat(delivery["receivedAt"]) for delivery in found]
    assert before <= times[-1] <= times[0] <= now()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000])
async def test_size_of_a_binary_body_is_exact(caller: httpx.AsyncClient, live_database: Database, size: int) -> None:
    made = await webhook(caller, live_database)
    await caller.post(made.url, content=b"\xff" * size, headers={"Content-Type": "a/b;" + "x" * 500})
    assert [delivery["bytes"] for delivery in await made.deliveries()] == [size]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"enabled": False}, (409, "trigger_disabled")),
        ({"limits": {"stored_bytes": 0}}, (403, "stored_bytes_limit_reached")),
        ({"tier": Tier.FREE, "limits": {"runs": 0}}, (403, "run_limit_reached")),
        ({"depth": "99"}, (400, "call_depth_exceeded")),
    ],
    ids=str,
)
async def test_every_kind_of_rejection_is_recorded(
    caller: httpx.AsyncClient,
    live_database: Database,
    state: dict[str, Any],
    expected: tuple[int, str],
) -> None:
    made = await webhook(caller, live_database)
    async with live_database.transaction() as session:
        if "enabled" in state:
            await session.execute(sa.update(TriggerRecord).values(enabled=False))
        if "limits" in state:
            await session.execute(sa.update(UserRecord).values(**state))
    headers = {"BloxServer-Depth": state.get("depth", "0")}
    answer = await caller.post(made.url, content=BODY, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == expected
    (found,) = await made.deliveries()
    assert (found["status"], found["code"], found["message"]) == (*expected, answer.json()["message"])
    assert await count(live_database) == 0
    assert await count(live_database, UsageRecord) == 0


@covers("deliveries.limit")
async def test_last_deliveries_are_kept(caller: httpx.AsyncClient, live_database: Database) -> None:
    made = await webhook(caller, live_database)
    other = await webhook(caller, live_database)
    await set_flow(live_database, status=FlowStatus.STOPPED)
    await other.send()
    for begin in range(0, MAX_DELIVERIES + 30, 26):
        await asyncio.gather(*(made.send(b"x" * (begin + number)) for number in range(26)))
    await made.send(b"x" * 200)  # concurrent transactions do not see the rows of each other
    assert await count(live_database, WebhookDeliveryRecord) == MAX_DELIVERIES + 1
    await set_flow(live_database, status=FlowStatus.RUNNING)
    await made.send()
    found = await made.deliveries()
    assert [delivery["outcome"] for delivery in found] == ["accepted"] + ["rejected"] * (MAX_DELIVERIES - 1)
    assert min(delivery["bytes"] for delivery in found[1:]) > 25
    assert len(await other.deliveries()) == 1


async def test_recording_does_not_write_to_deliveries_that_are_kept(
    caller: httpx.AsyncClient, live_database: Database, backend: str
) -> None:
    if backend == "sqlite":
        pytest.skip("SQLite has no locks of rows")
    made = await webhook(caller, live_database)
    await set_flow(live_database, status=FlowStatus.STOPPED)
    for number in range(MAX_DELIVERIES + 5):
        await made.send(b"x" * number)
    locked = sa.text("SELECT count(*) FROM webhook_deliveries WHERE xmax <> 0")
    async with live_database.sessions() as session:
        assert await session.scalar(locked) == 0
    assert await count(live_database, WebhookDeliveryRecord) == MAX_DELIVERIES


async def test_failure_to_record_does_not_replace_the_response(
    caller: httpx.AsyncClient, live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find_webhook_id(session: AsyncSession, token: str) -> UUID:
        return uuid4()  # a trigger that was deleted meanwhile

    monkeypatch.setattr(webhook_deliveries, "find_webhook_id", find_webhook_id)
    made = await webhook(caller, live_database, GITHUB)
    for query in ("", "?wait=1"):
        assert (await caller.post(made.url + query)).json()["code"] == "invalid_signature"


async def test_unknown_token_is_not_recorded(caller: httpx.AsyncClient, live_database: Database) -> None:
    await webhook(caller, live_database)
    assert (await caller.post("/webhooks/unknown")).status_code == 404
    assert await count(live_database, WebhookDeliveryRecord) == 0


class TestRedelivery:
    async def redeliver(self, made: Webhook, delivery_id: str) -> httpx.Response:
        return await made.client.post(f"{made.path}/deliveries/{delivery_id}/redeliver")

    @covers("deliveries.redeliver")
    @pytest.mark.parametrize("body", [BODY, b"", b"\xff\x00"])
    async def test_redelivery_starts_an_execution_with_the_same_input(
        self, caller: httpx.AsyncClient, live_database: Database, body: bytes
    ) -> None:
        made = await webhook(caller, live_database, GITHUB)
        first = (await made.send(body)).json()["executionId"]
        answer = await self.redeliver(made, first)
        assert answer.status_code == 201
        new = answer.json()
        assert (new["status"], new["triggerType"], new["triggerId"]) == ("running", "webhook", made.trigger["id"])
        assert new["retryOf"] == first
        path = f"{API}/flows/{made.trigger['flowId']}/executions"
        original = (await caller.get(f"{path}/{first}")).json()
        assert (new["inputPayload"], new["inputEncoding"]) == (original["inputPayload"], original["inputEncoding"])
        found = await made.deliveries()
        assert [delivery["redeliveryOf"] for delivery in found] == [first, None]
        async with live_database.sessions() as session:
            assert await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) == 2
        again = await self.redeliver(made, new["id"])
        assert again.json()["inputPayload"] == original["inputPayload"]

    async def test_repeated_delivery_is_delivered_again(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database)
        for _ in range(2):
            await made.send(Idempotency_Key="k")
        repeated, first = await made.deliveries()
        assert (await self.redeliver(made, repeated["id"])).json()["retryOf"] == first["id"]

    @covers("deliveries.redeliver.rejected")
    async def test_rejected_delivery_cannot_be_delivered_again(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database, GITHUB)
        await caller.post(made.url)
        (rejected,) = await made.deliveries()
        assert_problem(
            await self.redeliver(made, rejected["id"]),
            409,
            "delivery_rejected",
            "The delivery was rejected, and its body is not stored",
        )

    async def test_deliveries_of_others_do_not_exist(self, caller: httpx.AsyncClient, live_database: Database) -> None:
        made = await webhook(caller, live_database)
        other = await webhook(caller, live_database)
        run = (await caller.post(f"{API}/flows/{made.trigger['flowId']}/executions/run")).json()
        theirs = (await other.send()).json()["executionId"]
        for delivery_id in (theirs, run["id"], str(uuid4())):
            answer = await self.redeliver(made, delivery_id)
            assert_problem(answer, 404, "delivery_not_found", "Delivery not found")

    async def test_deleted_execution_cannot_be_delivered_again(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database)
        first = (await made.send()).json()["executionId"]
        async with live_database.transaction() as session:
            await session.execute(sa.delete(ExecutionRecord))
        assert await made.deliveries() == []
        assert_problem(await self.redeliver(made, first), 404, "delivery_not_found", "Delivery not found")

    async def test_redelivery_needs_a_running_flow_an_enabled_webhook_and_the_limits(
        self, caller: httpx.AsyncClient, live_database: Database
    ) -> None:
        made = await webhook(caller, live_database)
        first = (await made.send()).json()["executionId"]
        await set_flow(live_database, status=FlowStatus.STOPPED)
        assert (await self.redeliver(made, first)).json()["code"] == "flow_not_running"
        await set_flow(live_database, status=FlowStatus.RUNNING)
        await caller.patch(made.path, json={"enabled": False})
        assert (await self.redeliver(made, first)).json()["code"] == "trigger_disabled"
        await caller.patch(made.path, json={"enabled": True})
        async with live_database.transaction() as session:
            await session.execute(sa.update(UserRecord).values(tier=Tier.FREE, limits={"runs": 1}))
        assert (await self.redeliver(made, first)).json()["code"] == "run_limit_reached"
        assert await count(live_database) == 1
