"""The durable job queue behind the engine: DBOS, on SQLite or PostgreSQL. Nothing else imports it.

A job is an execution's id and its dispatch number. What DBOS lacks and what is done about it: `docs/decisions/0003`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, EnqueueOptions
from sqlalchemy import event

from bloxserver.settings import Settings

APPLICATION = "bloxserver"
VERSION = "1"
"""Pinned: a deploy goes on with the jobs of the version before. Raise it when a job's arguments change."""
WORKFLOW = "run_execution"
MAX_RECOVERY_ATTEMPTS = 100
LOCAL_EXECUTOR = "local"

RunJob = Callable[[UUID, int], Awaitable[None]]

_run: RunJob | None = None
"""What this process does with a job. DBOS keeps one registry per process, so there is one worker per process."""


class Job(NamedTuple):
    execution_id: UUID
    number: int
    """The execution's dispatch number: the same pair is one job, however often it is enqueued."""
    user_id: UUID
    tier: str


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
async def _run_execution(execution_id: str, number: int) -> None:
    if _run is None:
        raise RuntimeError("a job arrived before the worker was ready")
    await _run(UUID(execution_id), number)


class JobQueue:
    """Enqueues jobs and, once `work` was called, runs them on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._engine = self._create_engine()
        self._client = DBOSClient(
            system_database_engine=self._engine,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            lazy=True,
            retry_connection_errors=False,
        )
        self._working = False

    def _create_engine(self) -> sa.Engine:
        url = sa.make_url(self._settings.database_url)
        if not self._settings.uses_sqlite:
            return sa.create_engine(
                url.set(drivername="postgresql+psycopg"),
                pool_size=self._settings.database_pool_size,
                max_overflow=0,
                pool_pre_ping=True,
                connect_args={"application_name": "bloxserver-engine"},
            )
        if url.database in (None, "", ":memory:"):
            self._directory = tempfile.TemporaryDirectory(prefix="bloxserver-")
            path = Path(self._directory.name) / "engine.db"
        else:
            # Its own file: the engine's polls and checkpoints do not take the API's write lock.
            path = Path(str(url.database)).with_suffix(".engine.db")
        engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        event.listen(engine, "connect", _set_up_sqlite_connection)
        return engine

    async def prepare(self) -> None:
        """Create or update the queue's own tables."""
        url = self._engine.url.render_as_string(hide_password=False)
        await asyncio.to_thread(DBOS.migrate, url)

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        """Hand jobs over, all in one transaction; one that is there already stays as it is."""
        await asyncio.to_thread(self._enqueue, jobs)

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        with self._engine.begin() as connection:
            for job in jobs:
                options: EnqueueOptions = {
                    "workflow_name": WORKFLOW,
                    "queue_name": _queue_name(job.tier),
                    "workflow_id": f"{job.execution_id}:{job.number}",
                    "app_version": VERSION,
                    "queue_partition_key": str(job.user_id),
                }
                self._client.enqueue_in_transaction(connection, options, str(job.execution_id), job.number)

    async def work(self, executor_id: str, run: RunJob) -> None:
        """Begin to run jobs on this event loop, first those that `executor_id` left unfinished."""
        global _run
        _run = run
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_engine": self._engine,
            "application_version": VERSION,
            "executor_id": executor_id,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            "use_listen_notify": False,
            "run_migrations": False,
        }
        # Before the launch: queues that come later are noticed only after a second.
        await asyncio.to_thread(self._register_queues)
        DBOS(config=config)
        DBOS.launch()
        self._working = True

    def _register_queues(self) -> None:
        for tier, concurrency in concurrency_by_tier(self._settings).items():
            self._client.register_queue(
                _queue_name(tier),
                worker_concurrency=self._settings.worker_concurrency,
                partition_concurrency=concurrency,
                polling_interval_sec=self._settings.engine_poll_seconds,
                on_conflict="always_update",
            )

    async def take_over(self, executor_ids: Sequence[str]) -> None:
        """Make the unfinished jobs of dead executors run again, on whichever worker is free."""
        # Private, but the only way: open-source DBOS has no take-over. Safe to call twice, or from two workers.
        await asyncio.to_thread(DBOS._recover_pending_workflows, list(executor_ids))

    async def executors_with_pending_jobs(self) -> list[str]:
        """Executors that took jobs and have not ended them."""
        return await asyncio.to_thread(self._executors_with_pending_jobs)

    def _executors_with_pending_jobs(self) -> list[str]:
        schema = None if self._settings.uses_sqlite else "dbos"
        status = sa.table("workflow_status", sa.column("status"), sa.column("executor_id"), schema=schema)
        pending = sa.select(status.c.executor_id).where(status.c.status == "PENDING").distinct()
        with self._engine.connect() as connection:
            return [executor for executor in connection.scalars(pending) if executor]

    async def stop(self) -> None:
        """Take no more jobs and let go of the database; running jobs must have ended or are left to a later start."""
        if self._working:
            await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
            # DBOS had made its own thread pool the loop's, and has shut it down.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
            self._working = False
        self._engine.dispose()
        if self._directory is not None:
            self._directory.cleanup()


def concurrency_by_tier(settings: Settings) -> dict[str, int]:
    """How many executions of one user run at once."""
    return {
        "free": settings.concurrency_free,
        "pro": settings.concurrency_pro,
        "enterprise": settings.concurrency_enterprise,
        "high_frequency": settings.concurrency_high_frequency,
    }


def _queue_name(tier: str) -> str:
    """A queue per tier, so that one tier's backlog is never in front of another's."""
    return f"executions-{tier}"


def _set_up_sqlite_connection(connection: Any, record: object) -> None:
    connection.isolation_level = "IMMEDIATE"
    # NORMAL: what a power cut takes from this file, the next start hands over anew; the database itself is FULL.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")
    if sqlite3.sqlite_version_info < (3, 42):
        # DBOS uses unixepoch('subsec') on Python 3.12 and later, whatever SQLite knows.
        connection.create_function("unixepoch", -1, lambda *_: round(time.time(), 3))
