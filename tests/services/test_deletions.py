"""Deletions: small ones are complete after the request, large ones hide the flow or the trigger at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.blocks.base import BlockError
from bloxserver.clock import now
from bloxserver.engine.background.expired import read_flow_ids
from bloxserver.engine.background.notification_rows import read_due_notifications, read_failure, read_notice
from bloxserver.engine.background.schedule_firing import disable_schedule, fire_schedule, postpone_schedule
from bloxserver.engine.queue.claims import read_call_results
from bloxserver.engine.queue.leases import lost_leases
from bloxserver.engine.run.flow_calls import CallingExecution, FlowCalls
from bloxserver.errors import NotFound
from bloxserver.models.database import Database
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    KeyValueRecord,
    NotificationChannel,
    Tier,
    TriggerRecord,
    TriggerType,
    UserRecord,
)
from bloxserver.queries.flows import has_flows_to_reconcile, read_flows_to_reconcile
from bloxserver.queries.overview import read_overview
from bloxserver.queries.triggers import lock_due_schedule, read_due_schedules, read_next_fire, read_running_definition
from bloxserver.services.deletions import MAX_BYTES, MAX_EXECUTIONS, MAX_ROWS, delete_flow, delete_trigger
from bloxserver.services.executions import Input, accept
from bloxserver.services.flows import transition_flow
from bloxserver.services.key_values import set_value
from tests.deleting import LARGE, add_executions, count
from tests.engine.queue_claims import claim
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.statements import count_statements

API = "/api/v1/flows"
SCHEDULE = {"cron": "* * * * *"}


class TestSize:
    """Without an engine, as in third-party tests: `client` has no lifespan."""

    @pytest.mark.parametrize(
        ("executions", "steps", "size", "small"),
        [
            (MAX_EXECUTIONS, 1, 10, True),
            (MAX_EXECUTIONS + 1, 0, 10, False),
            (10, MAX_ROWS // 10 - 1, 10, True),
            (10, MAX_ROWS // 10, 10, False),
            (2, 4, MAX_BYTES // 16, True),
            (2, 4, MAX_BYTES // 8 + 2, False),
        ],
    )
    async def test_small_flow_is_deleted_in_the_request(
        self,
        client: httpx.AsyncClient,
        dev_user: UserRecord,
        session: AsyncSession,
        executions: int,
        steps: int,
        size: int,
        small: bool,
    ) -> None:
        flow = await create_flow(session, dev_user)
        await add_executions(session, flow, executions, steps=steps, size=size)
        assert (await client.delete(f"{API}/{flow.id}")).status_code == 204
        assert (await client.get(f"{API}/{flow.id}")).status_code == 404
        left = [await count(session, table) for table in (FlowRecord, ExecutionRecord, ExecutionStepRecord)]
        assert left == ([0, 0, 0] if small else [1, executions, executions * steps])

    async def test_many_versions_make_a_flow_large(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        flow = await create_flow(session, dev_user)
        rows = [{"flow_id": flow.id, "number": number, "organism_yaml": "x"} for number in range(MAX_ROWS + 1)]
        await session.execute(sa.insert(FlowVersionRecord), rows)
        await session.commit()
        assert (await client.delete(f"{API}/{flow.id}")).status_code == 204
        assert await count(session, FlowVersionRecord) == MAX_ROWS + 1

    @pytest.mark.parametrize("number", [MAX_EXECUTIONS, LARGE])
    async def test_trigger_is_deleted_or_marked_depending_on_its_size(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, number: int
    ) -> None:
        flow = await create_flow(session, dev_user)
        trigger = await create_trigger(session, flow)
        token = trigger.webhook_token
        await add_executions(session, flow, number, trigger_id=trigger.id)
        assert (await client.delete(f"{API}/{flow.id}/triggers/{trigger.id}")).status_code == 204
        small = number <= MAX_EXECUTIONS
        assert await count(session, TriggerRecord) == (0 if small else 1)
        assert await count(session, ExecutionRecord, ExecutionRecord.trigger_id.is_not(None)) == (
            0 if small else number
        )
        for path in (f"{API}/{flow.id}/triggers/{trigger.id}", f"/webhooks/{token}/test"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post(f"/webhooks/{token}")).json()["detail"] == "Webhook not found"
        assert (await client.delete(f"{API}/{flow.id}/triggers/{trigger.id}")).status_code == 404
        assert (await client.get(f"{API}/{flow.id}/triggers")).json() == []
        executions = (await client.get(f"{API}/{flow.id}/executions?page_size=1")).json()
        assert executions["total"] == number
        execution = (await client.get(f"{API}/{flow.id}/executions/{executions['items'][0]['id']}")).json()
        assert (execution["triggerId"], execution["triggerType"]) == (None, "manual")
        await create_trigger(session, flow, webhook_token=token)


@pytest.mark.parametrize(("number", "flow_cost", "trigger_cost"), [(3, 18, 11), (LARGE, 8, 6), (2 * LARGE, 8, 6)])
async def test_deletion_executes_the_expected_number_of_statements(
    client: httpx.AsyncClient,
    dev_user: UserRecord,
    session: AsyncSession,
    database_engine: AsyncEngine,
    number: int,
    flow_cost: int,
    trigger_cost: int,
) -> None:
    flow = await create_flow(session, dev_user)
    trigger = await create_trigger(session, flow)
    await add_executions(session, flow, number, trigger_id=trigger.id)
    with count_statements(database_engine) as statements:
        await client.delete(f"{API}/{flow.id}/triggers/{trigger.id}")
    assert len(statements) == trigger_cost, statements
    with count_statements(database_engine) as statements:
        await client.delete(f"{API}/{flow.id}")
    assert len(statements) == flow_cost, statements


async def test_large_flow_frees_tokens_limits_and_leases(session: AsyncSession) -> None:
    user = await create_user(session)
    flow, other = await create_flow(session, user), await create_flow(session, user)
    trigger = await create_trigger(session, flow)
    token = trigger.webhook_token
    await add_executions(session, flow)
    running = await create_execution(session, flow, lease=uuid4(), worker_id="w-1")
    kept = await create_execution(session, other, lease=uuid4(), worker_id="w-1")
    running_key, kept_key = key(running), key(kept)
    await delete_flow(session, user.id, flow.id)
    await session.commit()
    assert await lost_leases(session, {running_key, kept_key}) == {running_key}
    await session.refresh(running)
    assert (running.lease, running.worker_id) == (None, None)
    await create_trigger(session, other, webhook_token=token)


class Deleted:
    """A flow of the user that was deleted, and whose rows are still there."""

    def __init__(self, user: UserRecord) -> None:
        self.user = user

    async def arrange(self, session: AsyncSession) -> None:
        self.flow = await create_flow(session, self.user, name="Gone", latest_version=1)
        session.add(FlowVersionRecord(flow_id=self.flow.id, number=1, organism_yaml="x"))
        self.webhook = await create_trigger(session, self.flow)
        self.schedule = await create_trigger(session, self.flow, type=TriggerType.SCHEDULE, config=SCHEDULE)
        self.running = await create_execution(session, self.flow)
        self.failed = await create_execution(
            session, self.flow, status=ExecutionStatus.ERROR, completed_at=now(), error_message="e"
        )
        due = {"channel": NotificationChannel.URL, "due_at": now()}
        session.add(FailureNotificationRecord(execution_id=self.failed.id, **due))
        self.of_schedule = FailureNotificationRecord(trigger_id=self.schedule.id, reason="r", **due)
        session.add(self.of_schedule)
        await session.flush()

    async def delete(self, session: AsyncSession) -> None:
        """Mark the flow as deleted, like a request, but keep its webhook tokens, so that tests can use them."""
        await session.execute(sa.update(FlowRecord).where(FlowRecord.id == self.flow.id).values(deleted_at=now()))
        await session.commit()


@pytest.fixture
async def deleted(dev_user: UserRecord, session: AsyncSession) -> Deleted:
    deleted = Deleted(dev_user)
    await deleted.arrange(session)
    await deleted.delete(session)
    return deleted


GONE: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("GET", "", None),
    ("PATCH", "", {"name": "x"}),
    ("PATCH", "", {"organismYaml": "x"}),
    ("DELETE", "", None),
    ("POST", "/start", None),
    ("POST", "/stop", None),
    ("POST", "/validate", {}),
    ("GET", "/canvas", None),
    ("GET", "/versions", None),
    ("GET", "/versions/1", None),
    ("POST", "/versions/1/restore", None),
    ("GET", "/triggers", None),
    ("POST", "/triggers", {"type": "manual", "name": "T", "config": {}}),
    ("GET", "/triggers/{trigger}", None),
    ("PATCH", "/triggers/{trigger}", {"name": "x"}),
    ("DELETE", "/triggers/{trigger}", None),
    ("POST", "/triggers/{trigger}/regenerate-token", None),
    ("GET", "/triggers/{schedule}/upcoming", None),
    ("GET", "/executions", None),
    ("GET", "/executions/stats", None),
    ("POST", "/executions/run", {}),
    ("GET", "/executions/{execution}", None),
    ("GET", "/executions/{execution}/steps", None),
    ("GET", "/executions/{execution}/events", None),
    ("POST", "/executions/{execution}/cancel", None),
    ("POST", "/executions/{execution}/retry", None),
)


class TestReads:
    """A deleted flow whose rows are still there does not exist."""

    async def test_deleted_flow_is_not_found_by_any_route(self, client: httpx.AsyncClient, deleted: Deleted) -> None:
        places = {"trigger": deleted.webhook.id, "schedule": deleted.schedule.id, "execution": deleted.failed.id}
        for method, path, body in GONE:
            response = await client.request(method, f"{API}/{deleted.flow.id}{path.format(**places)}", json=body)
            assert response.status_code == 404, (method, path, response.text)

    async def test_deleted_flow_accepts_no_webhook(self, client: httpx.AsyncClient, deleted: Deleted) -> None:
        path = f"/webhooks/{deleted.webhook.webhook_token}"
        for response in (await client.post(path), await client.get(f"{path}/test")):
            assert (response.status_code, response.json()["detail"]) == (404, "Webhook not found")

    async def test_deleted_flow_counts_neither_in_lists_nor_in_limits(
        self, client: httpx.AsyncClient, deleted: Deleted, session: AsyncSession
    ) -> None:
        assert (await client.get(API)).json()["total"] == 0
        await session.execute(sa.update(UserRecord).values(tier=Tier.FREE))
        await session.commit()
        assert (await client.post(API, json={"name": "Gone"})).status_code == 201
        assert (await client.post(API, json={"name": "Another"})).status_code == 403

    async def test_queue_and_overview_ignore_a_deleted_flow(self, deleted: Deleted, session: AsyncSession) -> None:
        assert await claim(session) == []
        await session.execute(sa.update(ExecutionRecord).values(crash_count=5))
        assert await claim(session) == []
        overview = await read_overview(session, timedelta(minutes=1))
        assert {tier.waiting for tier in overview.queue.values()} == {0}
        assert dict(overview.ended) == {}
        assert overview.schedules.armed == 0

    @pytest.mark.parametrize("status", [FlowStatus.STARTING, FlowStatus.STOPPING])
    async def test_deleted_flow_is_neither_started_nor_stopped(
        self, deleted: Deleted, session: AsyncSession, status: FlowStatus
    ) -> None:
        await session.execute(sa.update(FlowRecord).values(status=status))
        assert await read_flows_to_reconcile(session, 10, now()) == []
        assert not await has_flows_to_reconcile(session)
        assert not await transition_flow(session, deleted.flow.id, FlowStatus.RUNNING)

    async def test_schedules_of_a_deleted_flow_do_not_fire(self, dev_user: UserRecord, session: AsyncSession) -> None:
        flow = Deleted(dev_user)
        await flow.arrange(session)
        await session.execute(sa.update(TriggerRecord).values(next_fire_at=now()))
        [due] = await read_due_schedules(session, now(), 10)
        await session.execute(sa.update(TriggerRecord).values(deleted_at=now()))
        assert not await fire_schedule(session, due, now())
        assert not await disable_schedule(session, due.trigger, "r", None)
        assert await postpone_schedule(session, due.trigger.trigger_id, "e", now()) is None
        for deleted_at, of_trigger in ((now(), None), (None, now())):
            await session.execute(sa.update(FlowRecord).values(deleted_at=deleted_at))
            await session.execute(sa.update(TriggerRecord).values(deleted_at=of_trigger))
            assert await read_due_schedules(session, now(), 10) == []
            assert await lock_due_schedule(session, due.trigger.trigger_id, now()) is None
            assert await read_next_fire(session, now() - timedelta(hours=1)) is None

    async def test_no_execution_is_accepted_after_the_flow_was_read(
        self, deleted: Deleted, session: AsyncSession
    ) -> None:
        """As when a request deletes the flow after a webhook has read it."""
        assert await read_running_definition(session, deleted.flow.id) is None
        with pytest.raises(NotFound):
            await accept(session, flow_id=deleted.flow.id, given=Input(None), trigger_type=TriggerType.WEBHOOK)

    async def test_notifications_of_a_deleted_trigger_are_not_sent(
        self, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        flow = Deleted(dev_user)
        await flow.arrange(session)
        assert len(await read_due_notifications(session, now(), 10)) == 2
        assert await read_notice(session, flow.of_schedule.id) is not None
        await session.execute(sa.update(TriggerRecord).values(deleted_at=now()))
        [of_execution] = await read_due_notifications(session, now(), 10)
        assert of_execution.id != flow.of_schedule.id
        assert await read_notice(session, flow.of_schedule.id) is None

    async def test_deleted_flow_sends_and_expires_nothing(self, deleted: Deleted, session: AsyncSession) -> None:
        assert await read_due_notifications(session, now(), 10) == []
        assert await read_failure(session, deleted.failed.id) is None
        assert await read_notice(session, deleted.of_schedule.id) is None
        assert await read_flow_ids(session, None, 10) == []

    async def test_deleted_flow_stores_no_key_values(self, deleted: Deleted, session: AsyncSession) -> None:
        with pytest.raises(NotFound):
            await set_value(session, deleted.flow.id, "k", 1, "step")

    async def test_results_of_a_deleted_flow_are_not_read(self, deleted: Deleted, session: AsyncSession) -> None:
        assert await read_call_results(session, [deleted.failed.id]) == {}


@pytest.mark.parametrize("by_id", [True, False])
async def test_no_flow_calls_a_deleted_one(live_database: Database, by_id: bool) -> None:
    async with live_database.sessions() as session:
        user = await create_user(session)
        deleted = Deleted(user)
        await deleted.arrange(session)
        await deleted.delete(session)
        caller = await create_execution(session, await create_flow(session, user, name="Caller"))
    calls = FlowCalls(live_database, CallingExecution(caller.id, user.id, 0, "s:1", None))
    with pytest.raises(BlockError) as caught:
        await calls.call(str(deleted.flow.id) if by_id else "Gone", None, None)
    assert caught.value.code == "flow_not_found"


def key(execution: ExecutionRecord) -> tuple[UUID, UUID]:
    assert execution.lease is not None
    return execution.id, execution.lease


async def test_small_flow_is_deleted_with_its_rows_in_other_tables(session: AsyncSession) -> None:
    user = await create_user(session)
    for _ in range(2):
        flow = await create_flow(session, user)
        execution = await create_execution(session, flow)
        session.add(KeyValueRecord(flow_id=flow.id, key="k"))
        session.add(FailureNotificationRecord(execution_id=execution.id, channel=NotificationChannel.URL, due_at=now()))
        await session.commit()
    await delete_flow(session, user.id, flow.id)
    await session.commit()
    for table in (KeyValueRecord, FailureNotificationRecord, ExecutionRecord, FlowRecord):
        assert await count(session, table) == 1, table


async def test_executions_that_wait_for_a_deleted_flow_are_due(session: AsyncSession) -> None:
    user = await create_user(session)
    flow, other = await create_flow(session, user), await create_flow(session, user)
    later = now() + timedelta(days=1)

    async def caller(status: ExecutionStatus, **values: Any) -> ExecutionRecord:
        execution = await create_execution(session, other, resume_at=later, **values)
        await create_execution(session, flow, parent_id=execution.id, parent_key="a:1", status=status)
        return execution

    waiting = await caller(ExecutionStatus.RUNNING)
    working = await caller(ExecutionStatus.RUNNING, lease=uuid4())
    answered = await caller(ExecutionStatus.SUCCESS)
    unrelated = await create_execution(session, other, resume_at=later)
    await delete_flow(session, user.id, flow.id)
    await session.commit()
    for execution in (waiting, working, answered, unrelated):
        await session.refresh(execution)
    assert waiting.resume_at is not None
    assert waiting.resume_at <= now()
    assert {execution.resume_at for execution in (working, answered, unrelated)} == {later}


async def test_flow_and_trigger_of_another_user_are_not_deleted(session: AsyncSession) -> None:
    flow, other = await create_flow(session, await create_user(session)), await create_user(session)
    trigger = await create_trigger(session, flow)
    with pytest.raises(NotFound) as error:
        await delete_flow(session, other.id, flow.id)
    assert (error.value.code, error.value.status) == ("flow_not_found", 404)
    with pytest.raises(NotFound) as error:
        await delete_trigger(session, other.id, flow.id, trigger.id)
    assert (error.value.code, error.value.status) == ("trigger_not_found", 404)
    assert await count(session, FlowRecord) == await count(session, TriggerRecord) == 1
