"""Reconciliation of flows that are starting or stopping."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.background.reconcile import FLOW_STOPPED, reconcile_flow, reconcile_flows
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, ExecutionStatus, FlowRecord, FlowStatus, FlowVersionRecord
from bloxserver.services import transitions
from bloxserver.services.flows import TRANSITIONS, transition_flow
from bloxserver.settings import Settings
from tests.api.contract import covers
from tests.factories import create_execution, create_flow, create_user

SETTINGS = Settings(stop_grace_seconds=30.0)


async def stored(database: Database, flow: FlowRecord) -> FlowRecord:
    async with database.sessions() as session:
        return await session.get_one(FlowRecord, flow.id)


async def test_a_start_makes_a_version_only_for_a_new_definition(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.STARTING)
    await reconcile_flows(live_database, SETTINGS)
    first = await stored(live_database, flow)
    assert first.status is FlowStatus.RUNNING

    async def restart(**values: str) -> FlowRecord:
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STARTING, **values))
        await reconcile_flows(live_database, SETTINGS)
        return await stored(live_database, flow)

    assert (first.active_version, first.latest_version) == (1, 1)
    assert (await restart()).active_version_id == first.active_version_id
    changed = await restart(organism_yaml=first.organism_yaml + "# changed\n")
    assert changed.active_version_id != first.active_version_id
    assert (changed.active_version, changed.latest_version) == (2, 2)
    async with live_database.sessions() as session:
        versions = await session.scalars(sa.select(FlowVersionRecord.number).order_by(FlowVersionRecord.number))
        assert list(versions) == [1, 2]


async def test_failed_start_stores_the_reason_and_a_stop_keeps_it(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.STARTING, organism_yaml="]")
    await reconcile_flow(live_database, SETTINGS, flow.id, now())
    refused = await stored(live_database, flow)
    assert refused.status is FlowStatus.ERROR
    assert (refused.error_message or "").startswith("line 1, column 1")
    async with live_database.transaction() as session:
        assert await transition_flow(session, flow.id, FlowStatus.STOPPING)
    await reconcile_flow(live_database, SETTINGS, flow.id, now())
    stopped = await stored(live_database, flow)
    assert (stopped.status, stopped.error_message) == (FlowStatus.STOPPED, refused.error_message)


async def test_only_allowed_transitions_are_made(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
    for before in FlowStatus:
        for after in FlowStatus:
            async with live_database.transaction() as session:
                await session.execute(sa.update(FlowRecord).values(status=before))
                moved = await transition_flow(session, flow.id, after)
            assert moved == (before in TRANSITIONS[after]), f"{before} to {after}"
            assert (await stored(live_database, flow)).status is (after if moved else before)


async def test_deleted_flow_is_ignored(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.STARTING)
        await session.delete(flow)
        await session.commit()
    await reconcile_flow(live_database, SETTINGS, flow.id, now())
    async with live_database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(FlowVersionRecord)) == 0


@covers("flows.stop.grace")
async def test_stop_waits_for_running_executions(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(
            session, await create_user(session), status=FlowStatus.STOPPING, stop_requested_at=now()
        )
        execution = await create_execution(session, flow)
    await reconcile_flows(live_database, SETTINGS)
    assert (await stored(live_database, flow)).status is FlowStatus.STOPPING
    async with live_database.transaction() as session:
        success = ExecutionStatus.SUCCESS
        assert await transitions.end_execution(session, execution.id, success, parent_id=None, output="1")
    await reconcile_flows(live_database, SETTINGS)
    assert (await stored(live_database, flow)).status is FlowStatus.STOPPED


@covers("flows.stop.grace")
async def test_running_executions_are_cancelled_after_the_grace_period(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloxserver.services.transitions.BATCH", 2)
    async with live_database.sessions() as session:
        user = await create_user(session)
        asked = now() - timedelta(seconds=SETTINGS.stop_grace_seconds)
        late = await create_flow(session, user, status=FlowStatus.STOPPING, stop_requested_at=asked)
        by_hand = await create_flow(session, user, status=FlowStatus.STOPPING)
        other = await create_flow(session, user)
        for flow in (late, late, late, late, late, by_hand, other):
            await create_execution(session, flow)
        await create_execution(session, late, status=ExecutionStatus.SUCCESS)
    await reconcile_flows(live_database, SETTINGS)
    assert (await stored(live_database, late)).status is FlowStatus.STOPPED
    assert (await stored(live_database, by_hand)).status is FlowStatus.STOPPED
    async with live_database.sessions() as session:
        ends = await session.execute(sa.select(ExecutionRecord.flow_id, ExecutionRecord.status))
        running, cancelled, success = ExecutionStatus.RUNNING, ExecutionStatus.CANCELLED, ExecutionStatus.SUCCESS
        assert sorted(map(tuple, ends)) == sorted(
            [(late.id, cancelled)] * 5 + [(late.id, success), (by_hand.id, cancelled), (other.id, running)]
        )
        reasons = sa.select(ExecutionRecord.error_message).where(ExecutionRecord.status == cancelled).distinct()
        assert list(await session.scalars(reasons)) == [FLOW_STOPPED]
