from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import iso_utc, now
from bloxserver.errors import BadRequest, Forbidden, PreconditionFailed
from bloxserver.models.database import WakeReason, wake_engine_after_commit
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.enums import AuditAction, FlowStatus
from bloxserver.models.tables import (
    FlowRecord,
    FlowVersionRecord,
    UserRecord,
)
from bloxserver.plans import Plan, get_plan
from bloxserver.queries.flow_etags import etag_of, matches
from bloxserver.queries.flows import count_flows, read_flow
from bloxserver.queries.running_flows import number_running
from bloxserver.queries.usage import stored_bytes_of
from bloxserver.queries.versions import read_version
from bloxserver.services import audit
from bloxserver.services.usage import limit_details, require_storage
from bloxserver.services.users import AccountDeleted
from bloxserver.services.versions import current_version, is_same_definition

TRANSITIONS = {
    FlowStatus.STARTING: {FlowStatus.STOPPED, FlowStatus.ERROR},
    FlowStatus.RUNNING: {FlowStatus.STARTING},
    FlowStatus.ERROR: {FlowStatus.STARTING, FlowStatus.RUNNING},
    FlowStatus.STOPPING: {FlowStatus.RUNNING, FlowStatus.STARTING, FlowStatus.ERROR},
    FlowStatus.STOPPED: {FlowStatus.STOPPING},
}
"""For each status, the statuses from which a flow may enter it."""
NO_OWNER = ("", None, False)
DEFINITION = ("organism_yaml", "canvas_state")
"""The columns of a definition. A change to one of them makes a new version."""


async def create_flow(
    session: AsyncSession, user_id: UUID, plan: Plan, name: str, description: str | None, organism_yaml: str | None
) -> FlowRecord:
    """Create a stopped flow. The number of flows is exact under concurrency.

    Raises `Forbidden` at a limit, and `AccountDeleted` if the user was deleted since the sign-in.
    """
    # The lock of the user's row makes the count exact. SQLite has one writer, so it needs no lock.
    owner = sa.select(stored_bytes_of(user_id), UserRecord.deleted_at).where(UserRecord.id == user_id)
    stored, deleted_at = (await session.execute(owner.with_for_update(key_share=True))).one_or_none() or (0, None)
    if deleted_at is not None:
        raise AccountDeleted
    if await count_flows(session, user_id) >= plan.flows:
        raise Forbidden(
            "flow_limit_reached",
            f"Flow limit reached ({plan.flows}). Upgrade to create more flows.",
            details={"limit": plan.flows},
        )
    require_storage(plan, stored or 0)
    flow = FlowRecord(
        user_id=user_id,
        name=name,
        description=description,
        organism_yaml=organism_yaml or DEFAULT_ORGANISM,
        latest_version=1,
    )
    session.add(flow)
    await session.flush()
    session.add(FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml=flow.organism_yaml))
    await session.flush()
    await audit.record(session, AuditAction.FLOW_CREATED, user_id, flow.id, flow_id=flow.id, after=_audited(flow))
    return flow


def _audited(flow: FlowRecord) -> dict[str, Any]:
    """What the audit log shows of a flow, besides the number of the version that has the definition."""
    return {"name": flow.name, "description": flow.description}


async def update_flow(
    session: AsyncSession,
    user_id: UUID,
    plan: Plan,
    flow_id: UUID,
    changes: dict[str, Any],
    expected: Collection[str] | None = None,
) -> FlowRecord:
    """Set the columns in `changes`. A changed definition makes a new version.

    Raises `NotFound`, `LimitReached`, and `PreconditionFailed` if no tag in `expected` is that of the flow.
    """
    flow = await read_flow(session, user_id, flow_id, lock=expected is not None or bool(changes))
    if expected is not None and not matches(flow, expected):
        raise _flow_changed(flow)
    if changes:
        before, after = await _change(session, plan, flow, changes)
        if after:
            await audit.record(
                session, AuditAction.FLOW_UPDATED, user_id, flow_id, flow_id=flow_id, before=before, after=after
            )
    return flow


def _flow_changed(flow: FlowRecord) -> PreconditionFailed:
    """The error for a change that is based on an older flow, with what identifies the current one."""
    etag = etag_of(flow)
    return PreconditionFailed(
        "flow_changed",
        "The flow has changed meanwhile. Read it again before you change it.",
        details={"etag": etag, "latestVersion": flow.latest_version, "updatedAt": iso_utc(flow.updated_at)},
        headers={"ETag": etag},
    )


async def restore_version(session: AsyncSession, user_id: UUID, plan: Plan, flow_id: UUID, number: int) -> FlowRecord:
    """Give the flow the definition of an earlier version, as a new version. Raises `NotFound`, `LimitReached`."""
    flow = await read_flow(session, user_id, flow_id, lock=True)
    version = await read_version(session, user_id, flow_id, number)
    definition = {name: getattr(version, name) for name in DEFINITION}
    before, after = await _change(session, plan, flow, definition)
    if after:
        action, after = AuditAction.FLOW_VERSION_RESTORED, {**after, "number": number}
        await audit.record(session, action, user_id, flow_id, flow_id=flow_id, before=before, after=after)
    return flow


async def _change(
    session: AsyncSession, plan: Plan, flow: FlowRecord, changes: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Set the columns. Returns what the audit log shows of the change, before and after."""
    organism_yaml, canvas_state = (changes.get(name, getattr(flow, name)) for name in DEFINITION)
    redefined = not is_same_definition(flow, organism_yaml, canvas_state)
    if redefined and flow.latest_version is None:
        await current_version(session, flow)  # a row inserted by hand may have no version; this keeps its definition
    before, version_before = _audited(flow), flow.latest_version
    for name, value in changes.items():
        setattr(flow, name, value)
    flow.updated_at = now()
    if redefined:
        await current_version(session, flow, plan)
    await session.flush()
    before, after = audit.difference(before, _audited(flow))
    if redefined:
        before["latestVersion"], after["latestVersion"] = version_before, flow.latest_version
    return before, after


async def start_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> FlowRecord:
    """Request a start. The engine validates the organism, and sets `running` or `error` with the reason.

    Raises `NotFound`, `BadRequest`, and `Forbidden` if as many flows run as the plan allows. Their number is exact
    under concurrency, also with a change of the plan. It is not limited for users whose plan was never changed: their
    flows beyond the plan are rows that another program has inserted.
    """
    # The lock of the user's row makes the number exact. A concurrent change of the plan has changed the tier since the
    # sign-in.
    had_plans = sa.or_(UserRecord.stripe_customer_id.is_not(None), UserRecord.tier_source.is_not(None))
    owner = sa.select(UserRecord.tier, UserRecord.limits, had_plans).where(UserRecord.id == user_id)
    tier, limits, is_limited = (await session.execute(owner.with_for_update(key_share=True))).one_or_none() or NO_OWNER
    limit = get_plan(tier, limits).flows
    flow = await read_flow(session, user_id, flow_id, lock=True)
    may_run = number_running(user_id) < limit if is_limited else sa.true()
    before = flow.status
    if not await transition_flow(session, flow_id, FlowStatus.STARTING, may_run, stop_requested_at=None):
        if before not in TRANSITIONS[FlowStatus.STARTING]:
            raise _wrong_state("start", before)
        used = await session.scalar(sa.select(number_running(user_id)))
        raise Forbidden(
            "running_flows_limit_reached",
            f"As many flows run as the plan allows ({limit}). Stop one of them, or upgrade.",
            details=limit_details(limit, used or 0),
        )
    return await _requested(session, flow, before, FlowStatus.STARTING)


async def stop_flow(session: AsyncSession, user_id: UUID, flow_id: UUID) -> FlowRecord:
    """Request a stop. The flow accepts no more runs, and becomes `stopped` when its executions have ended."""
    flow = await read_flow(session, user_id, flow_id, lock=True)
    before = flow.status
    if not await transition_flow(session, flow_id, FlowStatus.STOPPING, stop_requested_at=now()):
        raise _wrong_state("stop", before)
    return await _requested(session, flow, before, FlowStatus.STOPPING)


def _wrong_state(verb: str, status: FlowStatus) -> BadRequest:
    return BadRequest("flow_wrong_state", f"Cannot {verb} flow in {status.value} state")


async def _requested(session: AsyncSession, flow: FlowRecord, before: FlowStatus, to: FlowStatus) -> FlowRecord:
    await record_request(session, flow.user_id, flow.id, before, to)
    wake_engine_after_commit(session, WakeReason.FLOW)
    await session.refresh(flow)
    return flow


async def record_request(
    session: AsyncSession,
    user_id: UUID,
    flow_id: UUID,
    before: FlowStatus,
    to: FlowStatus,
    *,
    reason: str | None = None,
) -> None:
    """Record the request of a start or stop in the audit log. `reason` is the error message that the flow gets."""
    action = AuditAction.FLOW_STARTED if to is FlowStatus.STARTING else AuditAction.FLOW_STOPPED
    after = {"status": to} if reason is None else {"status": to, "errorMessage": reason}
    await audit.record(session, action, user_id, flow_id, flow_id=flow_id, before={"status": before}, after=after)


async def transition_flow(
    session: AsyncSession, flow_id: UUID, to: FlowStatus, *conditions: sa.ColumnElement[bool], **values: Any
) -> bool:
    """Set a flow's status. No other function does.

    Returns False if the flow was deleted, its status does not allow `to`, or it does not meet the conditions.
    """
    if to in (FlowStatus.STARTING, FlowStatus.RUNNING):
        values["error_message"] = None
    moved = await session.execute(
        sa.update(FlowRecord)
        .where(
            FlowRecord.id == flow_id,
            FlowRecord.deleted_at.is_(None),
            FlowRecord.status.in_(TRANSITIONS[to]),
            *conditions,
        )
        .values(status=to, updated_at=now(), **values)
        .returning(FlowRecord.id)
    )
    return moved.first() is not None
