"""Brings flows that were asked to start or stop to `running`, `error` or `stopped`."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.engine.background.schedule_firing import disarm_schedules
from bloxserver.engine.retry import process_each
from bloxserver.models.database import Database
from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import FlowRecord
from bloxserver.models.transient_errors import is_transient
from bloxserver.organism.problems import OrganismError
from bloxserver.queries.flows import has_running_executions, read_flows_to_reconcile
from bloxserver.services.flows import transition_flow
from bloxserver.services.preflight import installation_problems
from bloxserver.services.transitions import cancel_running
from bloxserver.services.validation import parse_organism
from bloxserver.services.versions import current_version
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

BATCH = 100
FLOW_STOPPED = "The flow was stopped"


async def reconcile_flows(database: Database, settings: Settings) -> None:
    """Settle all flows that wait for it; what runs of one that stops has `STOP_GRACE_SECONDS` from the stop on."""
    while True:
        grace_over = now() - timedelta(seconds=settings.stop_grace_seconds)
        async with database.transaction(read_only=True) as session:
            waiting = await read_flows_to_reconcile(session, BATCH, grace_over)
        settled = await process_each(waiting, partial(_settle, database, settings, grace_over))
        if len(waiting) < BATCH or settled == 0:
            return


async def _settle(database: Database, settings: Settings, grace_over: datetime, flow_id: UUID) -> bool:
    try:
        await reconcile_flow(database, settings, flow_id, grace_over)
    except Exception as error:
        if is_transient(error):
            raise
        # It stays for the next sweep, and keeps no other flow waiting.
        log.error("flow cannot be settled", flow_id=str(flow_id), exc_info=error)
        return False
    return True


async def reconcile_flow(database: Database, settings: Settings, flow_id: UUID, grace_over: datetime) -> None:
    """Settle one flow; does nothing where it was settled, changed or deleted meanwhile.

    Executions of a flow that was asked to stop before `grace_over` are cancelled.
    """
    async with database.transaction(read_only=True) as session:
        asked = await session.execute(
            sa.select(
                FlowRecord.status, FlowRecord.organism_yaml, FlowRecord.stop_requested_at, FlowRecord.user_id
            ).where(FlowRecord.id == flow_id, FlowRecord.deleted_at.is_(None))
        )
        flow = asked.first()
    if flow is None:
        return
    if flow.status is FlowStatus.STOPPING:
        if flow.stop_requested_at is None or flow.stop_requested_at <= grace_over:
            await _cancel_what_runs(database, flow_id)
        async with database.transaction() as session:
            # Waits for the transactions that have accepted executions of the flow: the next statement sees these.
            await session.execute(sa.select(FlowRecord.id).where(FlowRecord.id == flow_id).with_for_update())
            if await transition_flow(session, flow_id, FlowStatus.STOPPED, ~has_running_executions()):
                await disarm_schedules(session, flow_id)
    elif flow.status is FlowStatus.STARTING:
        error = await _problem(database, settings, flow.user_id, flow.organism_yaml)
        async with database.transaction() as session:
            await _end_start(session, flow_id, flow.organism_yaml, error)


async def _cancel_what_runs(database: Database, flow_id: UUID) -> None:
    """In batches, so that no transaction is long."""
    cancelled = True
    while cancelled:
        async with database.transaction() as session:
            cancelled = await cancel_running(session, flow_id, FLOW_STOPPED) > 0


async def _problem(database: Database, settings: Settings, user_id: UUID, organism_yaml: str) -> str | None:
    """Why the definition cannot run here."""
    try:
        organism = await parse_organism(organism_yaml)
    except OrganismError as error:
        return str(error)
    async with database.transaction(read_only=True) as session:
        problems = await installation_problems(session, settings, user_id, organism.requirements)
    errors = [problem for problem in problems if problem.severity == "error"]
    return str(OrganismError(errors)) if errors else None


async def _end_start(session: AsyncSession, flow_id: UUID, checked: str, error: str | None) -> None:
    # What was checked is what gets armed: an edit in between leaves the flow to the next sweep.
    same = FlowRecord.organism_yaml == checked
    if error is not None:
        if await transition_flow(session, flow_id, FlowStatus.ERROR, same, error_message=error):
            log.info("flow refused", flow_id=str(flow_id))
    elif await transition_flow(session, flow_id, FlowStatus.RUNNING, same):
        flow = await session.get_one(FlowRecord, flow_id, populate_existing=True)
        version = await current_version(session, flow)
        flow.active_version_id, flow.active_version = version.id, version.number
        await session.flush()
        log.info("flow runs", flow_id=str(flow_id))
