"""Runs during a stop of their flow: no execution runs in a stopped flow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.background.reconcile import reconcile_flow
from bloxserver.engine.background.schedule_firing import fire_schedule
from bloxserver.engine.background.schedules import fire_due_schedules
from bloxserver.engine.run.flow_calls import CallingExecution, call_flow
from bloxserver.errors import BadRequest, NotFound
from bloxserver.models.database import Database
from bloxserver.models.enums import FlowStatus, TriggerType
from bloxserver.models.tables import ExecutionRecord, FlowRecord, TriggerRecord, UsageRecord, UserRecord
from bloxserver.plans import FREE
from bloxserver.queries.triggers import read_due_schedules, read_webhook
from bloxserver.queries.usage import period_at
from bloxserver.services.deletions import delete_flow
from bloxserver.services.executions import (
    FlowNotRunning,
    Input,
    accept,
    accept_for_trigger,
    run_flow,
)
from bloxserver.services.flows import stop_flow
from bloxserver.services.retries import RetryFrom, RetryVersion, retry_execution
from bloxserver.services.webhooks import receive_webhook, webhook_call
from bloxserver.settings import Settings
from tests.factories import create_execution, create_flow, create_trigger, create_user
from tests.lock_waits import wait_for_lock_wait

PERIOD = period_at(now(), None, None)
Change = Callable[[AsyncSession], Awaitable[Any]]


class Installation:
    """A running flow with a webhook, a schedule that is due, a caller, and an execution that can be retried."""

    user: UserRecord
    flow: FlowRecord
    webhook: TriggerRecord
    schedule: TriggerRecord
    caller: ExecutionRecord
    failed: ExecutionRecord

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database

    async def arrange(self) -> None:
        async with self.database.sessions() as session:
            self.user = await create_user(session)
            self.flow = await create_flow(session, self.user, name="Callee")
            self.webhook = await create_trigger(session, self.flow)
            schedule = {"type": TriggerType.SCHEDULE, "config": {"cron": "* * * * *"}, "next_fire_at": now()}
            self.schedule = await create_trigger(session, self.flow, **schedule)
            self.caller = await create_execution(session, await create_flow(session, self.user, name="Caller"))
            self.failed = await create_execution(session, self.flow, status="error")

    async def do(self, change: Change) -> Any:
        async with self.database.transaction() as session:
            return await change(session)

    async def run(self, session: AsyncSession) -> None:
        await run_flow(session, self.user.id, FREE, PERIOD, self.flow.id, Input("x"))

    async def receive(self, session: AsyncSession) -> None:
        await receive_webhook(session, webhook_call(self.webhook.webhook_token or "", b"x"))

    async def fire(self, session: AsyncSession) -> None:
        (due,) = await read_due_schedules(session, now(), 10)
        assert await fire_schedule(session, due, now())

    async def call(self, session: AsyncSession) -> None:
        caller = CallingExecution(id=self.caller.id, user_id=self.user.id, depth=0, key="a:1", lease=None)
        await call_flow(session, caller=caller, flow="Callee", payload=None, target=None)

    async def retry(self, session: AsyncSession) -> None:
        ids = self.flow.id, self.failed.id
        await retry_execution(
            session, self.user.id, FREE, PERIOD, *ids, begin=RetryFrom.START, version=RetryVersion.SAME
        )

    async def stop(self, session: AsyncSession) -> None:
        await stop_flow(session, self.user.id, self.flow.id)

    async def delete(self, session: AsyncSession) -> None:
        await delete_flow(session, self.user.id, self.flow.id)

    async def reconcile(self) -> FlowStatus:
        """Reconcile the flow, whose grace period has not ended; returns its status."""
        await reconcile_flow(self.database, self.settings, self.flow.id, now() - timedelta(hours=1))
        async with self.database.sessions() as session:
            return (await session.get_one(FlowRecord, self.flow.id)).status

    async def running(self) -> int:
        async with self.database.sessions() as session:
            of_flow = ExecutionRecord.flow_id == self.flow.id, ExecutionRecord.status == "running"
            return await session.scalar(sa.select(sa.func.count()).where(*of_flow)) or 0

    @asynccontextmanager
    async def blocked(self, work: Awaitable[Any], waiting: int = 1) -> AsyncIterator[asyncio.Future[Any]]:
        """Start the work, and wait until `waiting` sessions, including its own, wait for a lock."""
        task = asyncio.ensure_future(work)
        await wait_for_lock_wait(self.database, task, waiting)
        yield task


@pytest.fixture
async def installation(live_settings: Settings, live_database: Database) -> Installation:
    installation = Installation(live_settings, live_database)
    await installation.arrange()
    return installation


def require_postgres(installation: Installation) -> None:
    if installation.settings.uses_sqlite:
        pytest.skip("SQLite has one writer")


@pytest.mark.parametrize("way", ["run", "receive", "fire", "call"])
async def test_stop_waits_for_a_run_that_is_being_accepted(installation: Installation, way: str) -> None:
    require_postgres(installation)
    async with installation.database.transaction() as accepting:
        await getattr(installation, way)(accepting)
        async with asyncio.timeout(4):  # less than the lock timeout: the user who stops the flow does not wait
            await installation.do(installation.stop)
        async with installation.blocked(installation.reconcile()) as reconciling:
            await accepting.commit()
        assert await reconciling is FlowStatus.STOPPING
    assert await installation.running() == 1


async def test_a_stop_waits_for_a_retry(installation: Installation) -> None:
    require_postgres(installation)
    async with installation.database.transaction() as accepting:
        await installation.retry(accepting)
        async with installation.blocked(installation.do(installation.stop)) as stopping:
            await accepting.commit()
        await stopping
    assert await installation.reconcile() is FlowStatus.STOPPING
    assert await installation.running() == 1


@pytest.mark.parametrize("way", ["run", "receive", "fire", "call"])
async def test_run_accepted_during_an_uncommitted_stop_is_seen_by_the_stop(
    installation: Installation, way: str
) -> None:
    require_postgres(installation)
    async with installation.database.transaction() as stopping:
        await installation.stop(stopping)
        async with asyncio.timeout(4):
            await installation.do(getattr(installation, way))
    assert await installation.reconcile() is FlowStatus.STOPPING
    assert await installation.running() == 1


@pytest.mark.parametrize("way", ["run", "receive", "call"])
@pytest.mark.parametrize("change", ["stop", "delete"])
async def test_a_run_that_commits_after_the_stop_is_refused(installation: Installation, way: str, change: str) -> None:
    """The flow is stopped, or deleted, after its status was read and before the execution is inserted."""
    require_postgres(installation)
    await installation.do(installation.run)
    async with installation.database.sessions() as session:
        of_flow = ExecutionRecord.flow_id == installation.flow.id
        await session.execute(sa.update(ExecutionRecord).where(of_flow).values(status="success"))
        await session.commit()
    async with installation.database.transaction() as counting:
        # Between the two, a run waits for the lock of the usage counter.
        await counting.execute(sa.select(UsageRecord.id).with_for_update())
        async with installation.blocked(installation.do(getattr(installation, way))) as accepting:
            if (way, change) == ("call", "delete"):
                change = "stop"  # the call keeps the flow from being deleted
            await installation.do(getattr(installation, change))
    with pytest.raises((FlowNotRunning, NotFound)) as refused:
        await accepting
    assert refused.value.code == {"stop": "flow_not_running", "delete": "flow_not_found"}[change]
    assert await installation.running() == 0
    async with installation.database.sessions() as session:
        assert await session.scalar(sa.select(UsageRecord.workflow_runs)) == 1, "the refused run is not counted"
    if change == "stop":
        assert await installation.reconcile() is FlowStatus.STOPPED


async def test_a_stop_sees_a_run_between_the_read_of_the_status_and_the_insert(installation: Installation) -> None:
    require_postgres(installation)
    function = """
        CREATE FUNCTION wait() RETURNS trigger AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN new; END $$
        LANGUAGE plpgsql"""
    trigger = "CREATE TRIGGER wait BEFORE INSERT ON executions FOR EACH ROW EXECUTE FUNCTION wait()"
    async with installation.database.transaction() as session:
        for statement in (function, trigger):
            await session.execute(sa.text(statement))
    async with installation.database.transaction() as holder:
        await holder.execute(sa.text("SELECT pg_advisory_xact_lock(1)"))
        async with installation.blocked(installation.do(installation.run)) as accepting:
            await installation.do(installation.stop)
            async with installation.blocked(installation.reconcile(), 2) as reconciling:
                await holder.commit()
            await accepting
    assert await reconciling is FlowStatus.STOPPING
    assert await installation.running() == 1


async def test_a_retry_after_the_stop_is_refused(installation: Installation) -> None:
    require_postgres(installation)
    async with installation.database.transaction() as stopping:
        await installation.stop(stopping)
        async with installation.blocked(installation.do(installation.retry)) as accepting:
            await stopping.commit()
        with pytest.raises(BadRequest, match="must be running"):
            await accepting


async def test_a_schedule_of_a_flow_that_stops_is_neither_fired_nor_disabled(installation: Installation) -> None:
    """The schedule was read before the stop."""
    database = installation.database
    async with database.transaction() as session:
        (due,) = await read_due_schedules(session, now(), 10)
    await installation.do(installation.stop)
    async with database.transaction() as session:
        assert not await fire_schedule(session, due, now())
    await fire_due_schedules(database)
    async with database.sessions() as session:
        schedule = await session.get_one(TriggerRecord, installation.schedule.id)
        assert (schedule.enabled, schedule.last_fired_at) == (True, None)
        assert await session.scalar(sa.select(UsageRecord.id)) is None
    assert await installation.running() == 0


@pytest.mark.parametrize("status", [status for status in FlowStatus if status is not FlowStatus.RUNNING])
async def test_only_running_flows_accept_executions(installation: Installation, status: FlowStatus) -> None:
    async with installation.database.transaction() as session:
        webhook = await read_webhook(session, installation.webhook.webhook_token or "")
        await session.execute(sa.update(FlowRecord).values(status=status))
        with pytest.raises(FlowNotRunning, match=f"status: {status.value}"):
            await accept_for_trigger(session, webhook, TriggerType.WEBHOOK, Input(None))
        with pytest.raises(FlowNotRunning):
            await accept(session, flow_id=webhook.flow_id, given=Input(None), trigger_type=TriggerType.MANUAL)
    assert await installation.running() == 0
