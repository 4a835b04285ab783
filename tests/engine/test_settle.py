"""Starting and stopping a flow, as the sweep does it."""

from __future__ import annotations

import sqlalchemy as sa

from bloxserver.api.models.database import Database
from bloxserver.api.models.tables import FlowRecord, FlowStatus, FlowVersionRecord
from bloxserver.engine.settle import settle_flow, settle_flows
from bloxserver.services.flows import MOVES, transition_flow
from tests.factories import create_flow, create_user


async def stored(database: Database, flow: FlowRecord) -> FlowRecord:
    async with database.sessions() as session:
        return await session.get_one(FlowRecord, flow.id)


async def test_a_start_makes_a_version_only_for_a_new_definition(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.STARTING)
    await settle_flows(live_database)
    first = await stored(live_database, flow)
    assert first.status is FlowStatus.RUNNING

    async def restart(**values: str) -> FlowRecord:
        async with live_database.transaction() as session:
            await session.execute(sa.update(FlowRecord).values(status=FlowStatus.STARTING, **values))
        await settle_flows(live_database)
        return await stored(live_database, flow)

    assert (await restart()).active_version_id == first.active_version_id
    changed = await restart(organism_yaml=first.organism_yaml + "# changed\n")
    assert changed.active_version_id != first.active_version_id
    async with live_database.sessions() as session:
        versions = await session.scalars(sa.select(FlowVersionRecord.number).order_by(FlowVersionRecord.number))
        assert list(versions) == [1, 2]


async def test_a_refused_start_says_why_and_a_stop_keeps_it(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.STARTING, organism_yaml="]")
    await settle_flow(live_database, flow.id)
    refused = await stored(live_database, flow)
    assert refused.status is FlowStatus.ERROR
    assert (refused.error_message or "").startswith("line 1, column 1")
    async with live_database.transaction() as session:
        assert await transition_flow(session, flow.id, FlowStatus.STOPPING)
    await settle_flow(live_database, flow.id)
    stopped = await stored(live_database, flow)
    assert (stopped.status, stopped.error_message) == (FlowStatus.STOPPED, refused.error_message)


async def test_only_known_moves_are_made(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
    for before in FlowStatus:
        for after in FlowStatus:
            async with live_database.transaction() as session:
                await session.execute(sa.update(FlowRecord).values(status=before))
                moved = await transition_flow(session, flow.id, after)
            assert moved == (before in MOVES[after]), f"{before} to {after}"
            assert (await stored(live_database, flow)).status is (after if moved else before)


async def test_a_flow_that_is_gone_is_left_alone(live_database: Database) -> None:
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session), status=FlowStatus.STARTING)
        await session.delete(flow)
        await session.commit()
    await settle_flow(live_database, flow.id)
    async with live_database.sessions() as session:
        assert await session.scalar(sa.select(sa.func.count()).select_from(FlowVersionRecord)) == 0
