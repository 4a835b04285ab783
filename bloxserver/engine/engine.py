"""The engine of a process: a sweeper, and a worker unless the process only serves the API."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog

from bloxserver.billing.client import get_stripe
from bloxserver.engine.background.account_emails import DueEmails, EmailSender
from bloxserver.engine.background.deletions import Deletions
from bloxserver.engine.background.metering import Metering, Reconciliation
from bloxserver.engine.background.notifications import NotificationSender
from bloxserver.engine.background.retention import Retention
from bloxserver.engine.background.sweeper import Sweeper
from bloxserver.engine.loops import cancel, run_forever
from bloxserver.engine.queue.claims import release_orphaned_claims
from bloxserver.engine.queue.heartbeat import Heartbeat
from bloxserver.engine.queue.notify import ChangeListener, WakeNotifier
from bloxserver.engine.queue.recovery import Recovery, recover_all
from bloxserver.engine.run.claimer import Claimer
from bloxserver.engine.run.context import SharedClients
from bloxserver.engine.run.worker import Worker
from bloxserver.engine.watchdog import watchdog
from bloxserver.models.database import Database, WakeReason
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.engine")


class _State(enum.Enum):
    STARTING = enum.auto()
    WORKING = enum.auto()
    DRAINING = enum.auto()


class Engine:
    """The background tasks of a process. Start and stop it once, on one event loop."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        run_worker: bool,
        kill_when_blocked: bool = False,
        watcher: ChangeListener | None = None,
    ) -> None:
        """With `kill_when_blocked`, a process whose event loop is blocked for `EVENT_LOOP_TIMEOUT` is killed.

        `watcher` learns which executions this and other processes have changed.
        """
        self._settings = settings
        self._database = database
        self._run_worker = run_worker
        self._watcher = watcher
        self.worker_id = f"w-{uuid4().hex[:12]}"
        """The id of this worker in `bloxserver status`."""
        self._clients = SharedClients.of(settings, database)
        self._sweeper = Sweeper(settings, database)
        self._worker = Worker(
            database,
            self._clients,
            concurrency=settings.worker_concurrency,
            # If the process survives such a pause, it was suspended, so no execution has blocked it.
            event_loop_timeout=0 if kill_when_blocked else settings.event_loop_timeout,
        )
        self._heartbeat = Heartbeat(settings, database, self.worker_id, kill_when_blocked=kill_when_blocked)
        has_heartbeat_process = run_worker and not settings.uses_sqlite
        self._watchdog = (
            None
            if has_heartbeat_process
            else watchdog(settings, self.worker_id if run_worker else None, kill=kill_when_blocked)
        )
        self._claimer = Claimer(
            settings, database, self._worker, self.worker_id, is_alive=lambda: self._heartbeat.is_fresh
        )
        self._notifier = NotificationSender(
            database, self._clients.http, self._clients.mail, settings, self._clients.shares
        )
        self._deletions = Deletions(database)
        texts = self._clients.texts if run_worker else None
        self._notify = None if settings.uses_sqlite else WakeNotifier(settings, self._wake, watcher, texts)
        self._state = _State.STARTING
        self._intake: list[asyncio.Task[None]] = []
        """Tasks that start new work. They are cancelled first at shutdown."""
        self._loops: list[asyncio.Task[None]] = []
        self._unlisten: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Start all tasks. Returns when the process is ready to run executions."""
        if self._watchdog is not None:
            await self._watchdog.start()
        self._unlisten.append(self._database.on_commit(self._wake))
        if self._notify is not None:
            self._unlisten.append(self._database.on_commit(self._notify.notify))
            self._unlisten.append(self._database.on_execution_change(self._notify.notify_changes))
            self._loop(self._notify.run)
        if self._watcher is not None:
            self._unlisten.append(self._database.on_execution_change(self._watcher.changed))
            # On SQLite, one process makes almost all changes. On PostgreSQL, the notifier sets it once it listens.
            self._watcher.set_notified(self._notify is None)
            # The worker of this process sends its texts directly.
            self._unlisten.append(self._watcher.on_watch(self._clients.texts.audience(self._watcher.hear).watch))
            if self._notify is not None:
                self._unlisten.append(self._watcher.on_watch(self._notify.notify_watched))
        if self._run_worker:
            await self._heartbeat.start()
            if self._settings.uses_sqlite:
                # Only one process uses the database: all existing claims belong to an earlier process.
                await recover_all(self._database, self.worker_id)
            else:
                self._loop(Recovery(self._settings, self._database, self._heartbeat, self.worker_id).run)
            self._intake.append(asyncio.create_task(run_forever(self._claimer.run)))
            self._loop(self._worker.watch)
            self._loop(self._worker.call_results.run)
            self._loop(self._notifier.run)
            self._loop(Retention(self._settings, self._database).run)
            self._loop(self._deletions.run)
            self._loop(DueEmails(self._database).run)
            if self._clients.mail.default is not None and self._clients.mail.sender:
                self._loop(EmailSender(self._database, self._clients.mail, self._settings).run)
            if (stripe := get_stripe(self._settings)) is not None:
                self._loop(Metering(self._database, stripe).run)
                self._loop(Reconciliation(self._database, stripe).run)
        self._intake.append(asyncio.create_task(run_forever(self._sweeper.run)))
        self._state = _State.WORKING

    @property
    def problem(self) -> str | None:
        """Why this process does not claim executions now, as text; None if it does."""
        if self._state is _State.STARTING:
            return "the engine has not started yet"
        if self._state is _State.DRAINING:
            return "the engine is shutting down"
        if self._run_worker and not self._heartbeat.is_fresh:
            return "the heartbeat has expired: other workers may recover the executions of this worker"
        return None

    async def stop(self) -> None:
        """Shut down gracefully.

        Claims nothing more, waits `SHUTDOWN_GRACE_SECONDS` for running executions, and releases the others.
        """
        self._state = _State.DRAINING
        await cancel(self._intake)
        if self._run_worker:
            # The loops still run: they notify other processes of ended executions, and receive cancellations.
            await self._worker.drain(self._settings.shutdown_grace_seconds)
        for unlisten in self._unlisten:
            unlisten()
        if self._watcher is not None:
            self._watcher.set_notified(False)
        await cancel(self._loops)
        if self._run_worker:
            await self._leave()
        await self._clients.aclose()
        if self._watchdog is not None:
            await self._watchdog.end()

    async def _leave(self) -> None:
        for leave in (self._release, self._heartbeat.end):
            try:
                await leave()
            except Exception as error:
                # Other workers recover the executions once the heartbeat has expired.
                log.warning("leases not released at shutdown", error=type(error).__name__)

    async def _release(self) -> None:
        async with self._database.transaction() as session:
            await release_orphaned_claims(session, self.worker_id, ())

    def _wake(self, work: frozenset[WakeReason]) -> None:
        self._sweeper.wake(work)
        if not self._run_worker:
            return
        if WakeReason.EXECUTION in work:
            self._claimer.wake()
            self._worker.call_results.wake()
        if WakeReason.CANCELLATION in work:
            self._worker.check_leases()
        if WakeReason.NOTIFICATION in work:
            self._notifier.wake()
        if WakeReason.DELETION in work:
            self._deletions.wake()

    def _loop(self, loop: Callable[[], Awaitable[None]]) -> None:
        self._loops.append(asyncio.create_task(run_forever(loop)))
