"""Flows that are created, changed, started and stopped."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Forbidden, NotFound
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import FlowRecord, FlowStatus, FlowVersionRecord, UserRecord
from bloxserver.plans import FREE, PLANS
from bloxserver.services import flows
from bloxserver.services.flows import (
    TRANSITIONS,
    restore_version,
    start_flow,
    stop_flow,
    transition_flow,
    update_flow,
)
from tests.factories import create_flow, create_user

CANVAS: dict[str, Any] = {"nodes": [], "edges": [], "viewport": {"x": 0, "y": 0, "zoom": 1}}


async def versions(session: AsyncSession, flow: FlowRecord) -> list[tuple[int, str]]:
    """Return the numbers and the texts of the flow's versions."""
    rows = await session.execute(
        sa.select(FlowVersionRecord.number, FlowVersionRecord.organism_yaml)
        .where(FlowVersionRecord.flow_id == flow.id)
        .order_by(FlowVersionRecord.number)
    )
    return [(row.number, row.organism_yaml) for row in rows]


@pytest.mark.parametrize(("given", "text"), [(None, DEFAULT_ORGANISM), ("", DEFAULT_ORGANISM), ("text", "text")])
async def test_new_flow_is_stopped_and_has_its_first_version(
    session: AsyncSession, user: UserRecord, given: str | None, text: str
) -> None:
    flow = await flows.create_flow(session, user.id, FREE, "Orders", "All orders", given)
    assert (flow.user_id, flow.name, flow.description) == (user.id, "Orders", "All orders")
    assert (flow.status, flow.organism_yaml, flow.latest_version) == (FlowStatus.STOPPED, text, 1)
    assert await versions(session, flow) == [(1, text)]


async def test_flow_beyond_the_limit_of_the_tier_is_rejected(session: AsyncSession, user: UserRecord) -> None:
    await create_flow(session, await create_user(session))
    await create_flow(session, user, deleted_at=now())
    await flows.create_flow(session, user.id, FREE, "First", None, None)
    with pytest.raises(Forbidden) as error:
        await flows.create_flow(session, user.id, FREE, "Second", None, None)
    assert (error.value.code, error.value.status) == ("flow_limit_reached", 403)
    assert error.value.details == {"limit": 1}
    assert (await flows.create_flow(session, user.id, PLANS["pro"], "Second", None, None)).name == "Second"


async def test_changed_definition_creates_a_version_and_other_changes_do_not(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await flows.create_flow(session, user.id, FREE, "Orders", None, "first")
    updated = await update_flow(session, user.id, FREE, flow.id, {"name": "Renamed", "organism_yaml": "first"})
    assert (updated.name, await versions(session, flow)) == ("Renamed", [(1, "first")])
    updated = await update_flow(session, user.id, FREE, flow.id, {"organism_yaml": "second"})
    assert (updated.latest_version, await versions(session, flow)) == (2, [(1, "first"), (2, "second")])
    updated = await update_flow(session, user.id, FREE, flow.id, {"canvas_state": CANVAS})
    assert (updated.canvas_state, updated.latest_version) == (CANVAS, 3)


async def test_update_without_changes_keeps_the_time_of_the_last_change(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user)
    changed_at = flow.updated_at
    assert (await update_flow(session, user.id, FREE, flow.id, {})).updated_at == changed_at
    assert (await update_flow(session, user.id, FREE, flow.id, {"name": "A flow"})).updated_at > changed_at


async def test_definition_of_a_flow_without_versions_is_kept_as_the_first_version(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user, organism_yaml="inserted by another program")
    await update_flow(session, user.id, FREE, flow.id, {"organism_yaml": "changed"})
    assert await versions(session, flow) == [(1, "inserted by another program"), (2, "changed")]


async def test_restored_version_is_the_newest_version(session: AsyncSession, user: UserRecord) -> None:
    flow = await flows.create_flow(session, user.id, FREE, "Orders", None, "first")
    await update_flow(session, user.id, FREE, flow.id, {"organism_yaml": "second", "canvas_state": CANVAS})
    restored = await restore_version(session, user.id, FREE, flow.id, 1)
    assert (restored.organism_yaml, restored.canvas_state, restored.latest_version) == ("first", None, 3)
    await restore_version(session, user.id, FREE, flow.id, 3)
    assert await versions(session, flow) == [(1, "first"), (2, "second"), (3, "first")]
    with pytest.raises(NotFound) as error:
        await restore_version(session, user.id, FREE, flow.id, 4)
    assert (error.value.code, error.value.status) == ("version_not_found", 404)


async def test_flow_of_another_user_is_neither_changed_nor_started_nor_stopped(
    session: AsyncSession, user: UserRecord
) -> None:
    flow, other = await create_flow(session, user), await create_user(session)

    def calls(user_id: UUID, flow_id: UUID) -> list[Any]:
        return [
            update_flow(session, user_id, FREE, flow_id, {"name": "Renamed"}),
            update_flow(session, user_id, FREE, flow_id, {"organism_yaml": "changed"}),
            restore_version(session, user_id, FREE, flow_id, 1),
            start_flow(session, user_id, flow_id),
            stop_flow(session, user_id, flow_id),
        ]

    for call in (*calls(other.id, flow.id), *calls(user.id, uuid4())):
        with pytest.raises(NotFound) as error:
            await call
        assert (error.value.code, error.value.status) == ("flow_not_found", 404)
    await session.refresh(flow)
    assert (flow.name, flow.status) == ("A flow", FlowStatus.RUNNING)


async def test_stop_sets_the_time_of_the_request_and_start_clears_it(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user)
    before = now()
    await stop_flow(session, user.id, flow.id)
    assert flow.stop_requested_at is not None
    assert before <= flow.stop_requested_at <= now()
    flow.status = FlowStatus.STOPPED
    await session.flush()
    assert (await start_flow(session, user.id, flow.id)).stop_requested_at is None


@pytest.mark.parametrize("status", FlowStatus)
async def test_start_and_stop_are_rejected_in_other_states(
    session: AsyncSession, user: UserRecord, status: FlowStatus
) -> None:
    for request, verb, to in ((start_flow, "start", FlowStatus.STARTING), (stop_flow, "stop", FlowStatus.STOPPING)):
        flow = await create_flow(session, user, status=status)
        if status in TRANSITIONS[to]:
            assert (await request(session, user.id, flow.id)).status is to
            continue
        with pytest.raises(BadRequest) as error:
            await request(session, user.id, flow.id)
        assert (error.value.code, error.value.status) == ("flow_wrong_state", 400)
        assert error.value.message == f"Cannot {verb} flow in {status.value} state"


async def test_transition_changes_only_a_flow_that_meets_the_conditions(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user, status=FlowStatus.STARTING, error_message="It failed before.")
    deleted = await create_flow(session, user, status=FlowStatus.STARTING, deleted_at=now())
    assert not await transition_flow(session, flow.id, FlowStatus.RUNNING, FlowRecord.name == "Another flow")
    assert not await transition_flow(session, flow.id, FlowStatus.STOPPED)
    assert not await transition_flow(session, deleted.id, FlowStatus.RUNNING)
    assert not await transition_flow(session, uuid4(), FlowStatus.RUNNING)
    assert await transition_flow(session, flow.id, FlowStatus.RUNNING, FlowRecord.name == "A flow", active_version=7)
    await session.refresh(flow)
    assert (flow.status, flow.active_version, flow.error_message) == (FlowStatus.RUNNING, 7, None)
