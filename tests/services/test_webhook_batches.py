"""Webhooks that share a transaction: the results of each one are as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest
import sqlalchemy as sa

from bloxserver import plans
from bloxserver.clock import now
from bloxserver.errors import BloxError
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    Tier,
    TriggerType,
    UsageRecord,
    UserRecord,
    WebhookDeliveryRecord,
)
from bloxserver.services import webhook_batches
from bloxserver.services.executions import Input
from bloxserver.services.rate_limits import UNLIMITED, Admission, RateLimiter
from bloxserver.services.webhook_batches import LARGE_CHARACTERS, WebhookBatches, batches_of
from bloxserver.services.webhooks import WebhookCall
from bloxserver.settings import Settings
from tests.factories import create_flow, create_trigger, create_user
from tests.lock_waits import wait_for_lock_wait
from tests.statements import count_statements

GIVEN = Input('{"a": 1}')
SURROGATE = Input("\ud800")
"""No database driver can encode it."""


async def create_webhook(database: Database, token: str, *, limits: object = None, **flow: object) -> UserRecord:
    async with database.transaction() as session:
        user = await create_user(session, tier=flow.pop("tier", Tier.PRO), limits=limits)
        created = await create_flow(session, user, **{"status": FlowStatus.RUNNING, **flow})
        await create_trigger(session, created, webhook_token=token, config={"target": "entry"})
    return user


async def receive(
    batches: WebhookBatches, token: str, given: Input = GIVEN, depth: int = 0, admission: Admission = UNLIMITED
) -> UUID:
    """Receive a webhook, and return the id of its execution."""
    return (await batches.receive(WebhookCall(token, b"", {}, given, depth, admission))).execution_id


async def receive_all(
    database: Database, tokens: Sequence[str], given: Input = GIVEN, admission: Admission = UNLIMITED
) -> list[UUID | BaseException]:
    """Receive webhooks at the same time, each with its number as call depth modulo 2."""
    batches = batches_of(database)
    calls = (receive(batches, token, given, number % 2, admission) for number, token in enumerate(tokens))
    return await asyncio.gather(*calls, return_exceptions=True)


def code_of(result: UUID | BaseException) -> str:
    return result.code if isinstance(result, BloxError) else type(result).__name__


async def read_executions(database: Database) -> dict[UUID, ExecutionRecord]:
    async with database.transaction(read_only=True) as session:
        return {row.id: row for row in await session.scalars(sa.select(ExecutionRecord))}


async def read_runs(database: Database, user: UserRecord) -> int:
    async with database.transaction(read_only=True) as session:
        total = sa.select(sa.func.sum(UsageRecord.workflow_runs)).where(UsageRecord.user_id == user.id)
        return int(await session.scalar(total) or 0)


async def test_webhooks_that_arrive_together_share_transactions(live_database: Database) -> None:
    users = [await create_webhook(live_database, f"token-{number}") for number in range(3)]
    with count_statements(live_database.engine) as statements:
        results = await receive_all(live_database, [f"token-{number % 3}" for number in range(30)])
    assert len(statements) == (3 if live_database.is_sqlite else 2)
    assert set(results) == set(await read_executions(live_database))
    assert [await read_runs(live_database, user) for user in users] == [10, 10, 10]


async def test_execution_has_the_values_of_its_webhook(live_database: Database) -> None:
    user = await create_webhook(live_database, "the-token")
    async with live_database.transaction() as session:
        flow = await session.scalar(sa.select(FlowRecord).where(FlowRecord.user_id == user.id))
        assert flow is not None
        session.add(version := FlowVersionRecord(flow_id=flow.id, number=4, organism_yaml="x"))
        await session.flush()
        flow.active_version_id, flow.active_version = version.id, 4
    before = now()
    await receive_all(live_database, ["the-token", "the-token"])
    for depth, execution in enumerate((await read_executions(live_database)).values()):
        assert (execution.flow_id, execution.trigger_type, execution.status) == (
            flow.id,
            TriggerType.WEBHOOK,
            "running",
        )
        assert (execution.flow_version_id, execution.flow_version) == (version.id, 4)
        assert (execution.input_payload, execution.input_encoding) == ('{"a": 1}', "text")
        assert (execution.target, execution.depth, execution.trigger_id is None) == ("entry", depth, False)
        assert before <= execution.started_at <= now()


async def test_refused_webhooks_have_no_effect_on_others(live_database: Database) -> None:
    user = await create_webhook(live_database, "good")
    await create_webhook(live_database, "stopped", status=FlowStatus.STOPPED)
    await create_webhook(live_database, "full", limits={"stored_bytes": 0})
    await create_webhook(live_database, "deleted", deleted_at=now())
    tokens = ["stopped", "good", "unknown", "full", "good", "deleted", "a\0b", "x" * 1000]
    results = await receive_all(live_database, tokens)
    assert [code_of(result) for result in results] == [
        "flow_not_running",
        "UUID",
        "webhook_not_found",
        "stored_bytes_limit_reached",
        "UUID",
        "webhook_not_found",
        "webhook_not_found",
        "webhook_not_found",
    ]
    assert {results[1], results[4]} == set(await read_executions(live_database))
    assert await read_runs(live_database, user) == 2


async def test_webhook_that_cannot_be_stored_does_not_reject_the_others(live_database: Database) -> None:
    user = await create_webhook(live_database, "good")
    batches = batches_of(live_database)
    results = await asyncio.gather(
        *(receive(batches, "good", SURROGATE if number == 1 else GIVEN) for number in range(4)),
        return_exceptions=True,
    )
    assert [isinstance(result, UUID) for result in results] == [True, False, True, True]
    assert len(await read_executions(live_database)) == await read_runs(live_database, user) == 3


async def test_hard_limit_of_runs_is_exact(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plans.PLANS, Tier.FREE, replace(plans.FREE, runs=3))
    user = await create_webhook(live_database, "free", tier=Tier.FREE)
    results = await receive_all(live_database, ["free"] * 6)
    assert sorted(code_of(result) for result in results) == ["UUID"] * 3 + ["run_limit_reached"] * 3
    assert len(await read_executions(live_database)) == await read_runs(live_database, user) == 3


@pytest.mark.parametrize("tier", [Tier.PRO, Tier.FREE])
async def test_each_webhook_is_counted_once_for_its_rate_limit(live_database: Database, tier: Tier) -> None:
    await create_webhook(live_database, "the-token", tier=tier, limits={"webhooks_per_minute": 3})
    admission = Admission(RateLimiter(lambda: 6029.0), "10.0.0.1")
    results = await receive_all(live_database, ["the-token"] * 5, admission=admission)
    assert sorted(code_of(result) for result in results) == ["UUID"] * 3 + ["rate_limited"] * 2
    async with live_database.sessions() as session:
        recorded = await session.scalars(sa.select(WebhookDeliveryRecord.code))
        assert set(recorded) == {"rate_limited"}


async def test_batch_that_fails_is_counted_once_for_its_rate_limit(live_database: Database) -> None:
    await create_webhook(live_database, "the-token", limits={"webhooks_per_minute": 2})
    admission = Admission(RateLimiter(lambda: 6029.0), "10.0.0.1")
    assert [code_of(each) for each in await receive_all(live_database, ["the-token"], SURROGATE, admission)] != ["UUID"]
    results = await receive_all(live_database, ["the-token"] * 2, admission=admission)
    assert sorted(code_of(result) for result in results) == ["UUID", "rate_limited"]


async def test_large_input_has_a_transaction_of_its_own(live_database: Database) -> None:
    await create_webhook(live_database, "the-token")
    with count_statements(live_database.engine) as statements:
        results = await receive_all(live_database, ["the-token"] * 2, Input("x" * LARGE_CHARACTERS))
    assert len(statements) == 2 * 3
    assert set(results) == set(await read_executions(live_database))


async def test_batches_are_bounded(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_batches, "MAX_BATCH", 5)
    await create_webhook(live_database, "the-token")
    with count_statements(live_database.engine) as statements:
        results = await receive_all(live_database, ["the-token"] * 12)
    assert set(results) == set(await read_executions(live_database))
    assert len(statements) == 3 * (3 if live_database.is_sqlite else 2)


async def test_tokens_take_turns(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_batches, "MAX_BATCH", 2)
    monkeypatch.setattr(webhook_batches, "MAX_TRANSACTIONS", 1)
    for token in ("many", "one"):
        await create_webhook(live_database, token)
    ended: list[str] = []

    async def receive_one(token: str) -> None:
        await receive(batches_of(live_database), token)
        ended.append(token)

    await asyncio.gather(*(receive_one(token) for token in ["many"] * 6 + ["one"]))
    assert "one" in ended[:2]


async def test_webhook_of_a_cancelled_request_does_not_stop_others(live_database: Database) -> None:
    await create_webhook(live_database, "the-token")
    batches = batches_of(live_database)
    cancelled, other = (asyncio.ensure_future(receive(batches, "the-token")) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await other in await read_executions(live_database)
    assert cancelled.cancelled()
    results = await receive_all(live_database, ["the-token"])
    assert results[0] in await read_executions(live_database)


async def test_locked_flow_does_not_delay_other_webhooks(live_database: Database, live_settings: Settings) -> None:
    if live_database.is_sqlite:
        pytest.skip("SQLite has one writer")
    user = await create_webhook(live_database, "locked")
    await create_webhook(live_database, "free")
    async with live_database.transaction() as session:
        await session.execute(sa.select(FlowRecord.id).where(FlowRecord.user_id == user.id).with_for_update())
        waiting = asyncio.ensure_future(receive(batches_of(live_database), "locked"))
        await wait_for_lock_wait(live_database, waiting)
        async with asyncio.timeout(4):  # less than the lock timeout
            free = await receive(batches_of(live_database), "free")
    assert {free, await waiting} == set(await read_executions(live_database))
