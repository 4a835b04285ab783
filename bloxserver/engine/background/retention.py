"""Retention: deletes executions, versions and audit events that need not be kept, in short transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from uuid import UUID

import sqlalchemy as sa
import structlog

from bloxserver.engine.background.expired import (
    ExecutionExcess,
    Limits,
    Position,
    VersionExcess,
    count_expired_events,
    count_spare_versions,
    count_steps,
    read_execution_excess,
    read_expired,
    read_flow_ids,
    read_version_excess,
)
from bloxserver.engine.background.retention_batches import (
    PRUNE_LOCK,
    BatchDeleter,
    PruneResult,
    RetentionLockBusy,
    delete_calls,
    delete_empty_buckets,
    delete_events,
    delete_idempotency_keys,
    delete_versions,
)
from bloxserver.engine.loops import PollLoop
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import is_transient
from bloxserver.models.types import database_now
from bloxserver.observability import metrics
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.retention")

INTERVAL_SECONDS = 3600.0
FIRST_PAUSE_SECONDS = 60.0
"""Seconds from the start of the process to the first run."""
MIN_INTERVAL_SECONDS = 0.05
"""Pause after each transaction, so that other writes can proceed."""
FLOWS = 100
EXECUTIONS = 100
"""Rows that one statement reads."""


class Retention:
    """Runs on every worker; on PostgreSQL one of them at a time deletes."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        min_interval_seconds: float = MIN_INTERVAL_SECONDS,
    ) -> None:
        self._settings = settings
        self._database = database
        self._interval_seconds = interval_seconds
        self._loop = PollLoop(
            self._poll,
            failure="deleting expired rows failed",
            retry_seconds=min(first_pause_seconds, interval_seconds),
            first_pause_seconds=first_pause_seconds,
            jitter=0.2,  # replicas that started together do not delete together
        )
        self._deleter = BatchDeleter(
            database, lock=PRUNE_LOCK, min_interval_seconds=min_interval_seconds, on_delete=_count
        )

    async def run(self) -> None:
        """Delete expired rows until cancelled."""
        await self._loop.run()

    async def _poll(self) -> float:
        pruned = await self.prune()
        if pruned.rows:
            counts = asdict(pruned)
            del counts["others"]
            log.info("expired rows deleted", **counts)
        return self._interval_seconds

    async def prune(self, *, dry_run: bool = False) -> PruneResult:
        """Delete all expired rows, or only count them with `dry_run`."""
        pruned = PruneResult()
        limits = await self._limits()
        try:
            async for flow_ids in self._pages():
                async with self._database.transaction(read_only=True) as session:
                    executions = await read_execution_excess(session, limits, flow_ids)
                for excess in executions:
                    with _continue_after_failure(excess.flow_id):
                        await self._prune_executions(excess, limits, pruned, dry_run=dry_run)
                async with self._database.transaction(read_only=True) as session:
                    versions = await read_version_excess(session, limits, flow_ids)
                for flow in versions:
                    with _continue_after_failure(flow.flow_id):
                        await self._prune_versions(flow, limits, pruned, dry_run=dry_run)
            if not dry_run:
                delete = partial(delete_idempotency_keys, moment=limits.moment)
                while await self._deleter.in_transaction(delete, pruned):
                    pass
                if limits.since is not None:
                    delete = partial(delete_calls, since=limits.since)
                    while await self._deleter.in_transaction(delete, pruned):
                        pass
            await self._prune_events(limits, pruned, dry_run=dry_run)
        except RetentionLockBusy:
            pruned.lock_busy = True
        return pruned

    async def _limits(self) -> Limits:
        """The limits by the database's clock: a worker with a wrong clock must not delete executions too early."""
        days, audit_days = self._settings.execution_retention_days, self._settings.audit_retention_days
        async with self._database.transaction(read_only=True) as session:
            moment = (await session.execute(sa.select(database_now()))).scalar_one()
        return Limits(
            moment=moment,
            since=moment - timedelta(days=days) if days else None,
            per_flow=self._settings.execution_retention_per_flow or None,
            versions=self._settings.flow_version_retention or None,
            audit_since=moment - timedelta(days=audit_days) if audit_days else None,
        )

    async def _pages(self) -> AsyncIterator[Sequence[UUID]]:
        """All flows."""
        after: UUID | None = None
        while True:
            async with self._database.transaction(read_only=True) as session:
                flow_ids = await read_flow_ids(session, after, FLOWS)
            if flow_ids:
                yield flow_ids
            if len(flow_ids) < FLOWS:
                return
            after = flow_ids[-1]

    async def _prune_executions(
        self, excess: ExecutionExcess, limits: Limits, pruned: PruneResult, *, dry_run: bool
    ) -> None:
        after: Position | None = None
        while True:
            async with self._database.transaction(read_only=True) as session:
                expired = await read_expired(session, excess, limits, after, EXECUTIONS)
                if not expired:
                    break
                if dry_run:
                    pruned.executions += len(expired)
                    pruned.steps += await count_steps(session, [execution.position.id for execution in expired])
            if not dry_run:
                await self._deleter.delete_executions(expired, pruned)
            after = expired[-1].position
        if after is not None and not dry_run:
            delete = partial(delete_empty_buckets, flow_id=excess.flow_id, until=after)
            while await self._deleter.in_transaction(delete, pruned):
                pass

    async def _prune_versions(self, flow: VersionExcess, limits: Limits, pruned: PruneResult, *, dry_run: bool) -> None:
        if dry_run:
            async with self._database.transaction(read_only=True) as session:
                pruned.versions += await count_spare_versions(session, flow, limits)
            return
        delete = partial(delete_versions, flow=flow, limits=limits)
        while await self._deleter.in_transaction(delete, pruned):
            pass

    async def _prune_events(self, limits: Limits, pruned: PruneResult, *, dry_run: bool) -> None:
        if limits.audit_since is None:
            return
        if dry_run:
            async with self._database.transaction(read_only=True) as session:
                pruned.audit_events = await count_expired_events(session, limits.audit_since)
            return
        delete = partial(delete_events, since=limits.audit_since)
        while await self._deleter.in_transaction(delete, pruned):
            pass


@contextmanager
def _continue_after_failure(flow_id: UUID) -> Iterator[None]:
    """Log an error. The next run tries again, and other flows are not delayed."""
    try:
        yield
    except RetentionLockBusy:
        raise
    except Exception as error:
        if is_transient(error):
            raise
        log.error("flow not pruned", flow_id=str(flow_id), exc_info=error)


def _count(deleted: PruneResult) -> None:
    for kind in ("executions", "steps", "versions", "audit_events"):
        metrics.RETENTION_DELETED.labels(kind).inc(getattr(deleted, kind))
