"""Reconciles flows: changes `starting` and `stopping` flows to `running`, `error` or `stopped`."""

from __future__ import annotations

import asyncio
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
from bloxserver.organism.problems import OrganismError, errors_of
from bloxserver.queries.flows import has_running_executions, read_flows_to_reconcile
from bloxserver.services.flows import transition_flow
from bloxserver.services.preflight import check_installation
from bloxserver.services.transitions import cancel_running
from bloxserver.services.validation import check, check_secret_values
from bloxserver.services.versions import current_version
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")

BATCH = 100
FLOW_STOPPED = "The flow was stopped"


async def reconcile_flows(database: Database, settings: Settings) -> None:
    """Reconcile all starting and stopping flows. Executions of a stopping flow have `STOP_GRACE_SECONDS` to end."""
    while True:
        grace_over = now() - timedelta(seconds=settings.stop_grace_seconds)
        async with database.transaction(read_only=True) as session:
            waiting = await read_flows_to_reconcile(session, BATCH, grace_over)
        work = partial(_reconcile, database, settings, grace_over)
        # Concurrently, since the check of a large definition takes seconds.
        settled = await asyncio.gather(*(process_each([flow_id], work) for flow_id in waiting))
        if len(waiting) < BATCH or sum(settled) == 0:
            return


async def _reconcile(database: Database, settings: Settings, grace_over: datetime, flow_id: UUID) -> bool:
    try:
        await reconcile_flow(database, settings, flow_id, grace_over)
    except Exception as error:
        if is_transient(error):
            raise
        # The next sweep tries again. Other flows are not delayed.
        log.error("flow not reconciled", flow_id=str(flow_id), exc_info=error)
        return False
    return True


async def reconcile_flow(database: Database, settings: Settings, flow_id: UUID, grace_over: datetime) -> None:
    """Reconcile one flow. Does nothing if it was reconciled, changed or deleted meanwhile.

    Executions of a flow whose stop was requested before `grace_over` are cancelled.
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
            await _cancel_running_executions(database, flow_id)
        async with database.transaction() as session:
            # Waits for transactions that are accepting executions: the next statement sees these executions.
            await session.execute(sa.select(FlowRecord.id).where(FlowRecord.id == flow_id).with_for_update())
            if await transition_flow(session, flow_id, FlowStatus.STOPPED, ~has_running_executions()):
                await disarm_schedules(session, flow_id)
    elif flow.status is FlowStatus.STARTING:
        error = await _problem(database, settings, flow.user_id, flow_id, flow.organism_yaml)
        async with database.transaction() as session:
            await _end_start(session, flow_id, flow.organism_yaml, error)


async def _cancel_running_executions(database: Database, flow_id: UUID) -> None:
    """Cancel the flow's running executions in batches, so that transactions are short."""
    cancelled = True
    while cancelled:
        async with database.transaction() as session:
            cancelled = await cancel_running(session, flow_id, FLOW_STOPPED) > 0


async def _problem(
    database: Database, settings: Settings, user_id: UUID, flow_id: UUID, organism_yaml: str
) -> str | None:
    """Why the definition cannot run on this installation; None if it can. Raises `IsolationUnavailable`."""
    definition = organism_yaml.encode(errors="surrogatepass")
    checked = await check(definition, user_id)
    errors = errors_of(checked.problems)
    if not errors:
        async with database.transaction(read_only=True) as session:
            found = await check_installation(session, settings, user_id, checked.requirements, flow_id)
        errors = errors_of(found.problems)
        if not errors and found.secrets:
            errors = errors_of(await check_secret_values(definition, found.secrets, user_id))
    return str(OrganismError(errors)) if errors else None


async def _end_start(session: AsyncSession, flow_id: UUID, checked: str, error: str | None) -> None:
    # Only the checked definition is activated. If it was edited meanwhile, the next sweep reconciles the flow.
    same = FlowRecord.organism_yaml == checked
    if error is not None:
        if await transition_flow(session, flow_id, FlowStatus.ERROR, same, error_message=error):
            log.info("flow not started", flow_id=str(flow_id))
    elif await transition_flow(session, flow_id, FlowStatus.RUNNING, same):
        flow = await session.get_one(FlowRecord, flow_id, populate_existing=True)
        version = await current_version(session, flow)
        flow.active_version_id, flow.active_version = version.id, version.number
        await session.flush()
        log.info("flow started", flow_id=str(flow_id))
