"""What a scrape adds to the process's own metrics: the pools, and what the database knows of the installation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy.exc import SQLAlchemyError

from bloxserver.api.dependencies import SessionSource
from bloxserver.clock import now
from bloxserver.models import database as models_database
from bloxserver.queries.overview import read_queue, read_schedules, read_workers
from bloxserver.settings import get_settings

log = structlog.stdlib.get_logger("bloxserver.observability.metrics")

READING_SECONDS = 5
"""How long a scrape waits for the database: longer, and Prometheus would get nothing at all."""


async def collect_metrics(sessions: SessionSource) -> list[Metric]:
    """All that is not counted in this process; without the database, that it is away."""
    up = GaugeMetricFamily("bloxserver_database_up", "Whether the database could be read for this scrape.")
    try:
        async with asyncio.timeout(READING_SECONDS):
            families = await _read(sessions)
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
        log.warning("no metrics of the database", error=type(error).__name__)
        families = []
    up.add_metric([], float(bool(families)))
    return [up, *_pools(), *families]


async def _read(sessions: SessionSource) -> list[Metric]:
    moment = now()
    async with sessions.reading() as session:
        queue = await read_queue(session, moment)
        workers = await read_workers(session, timedelta(seconds=get_settings().heartbeat_timeout_seconds))
        schedules = await read_schedules(session, moment)
    depth = GaugeMetricFamily(
        "bloxserver_queue_executions",
        "Executions that have not ended: waiting for a worker, running, or suspended until a time or an answer.",
        labels=["tier", "state"],
    )
    age = GaugeMetricFamily(
        "bloxserver_queue_oldest_seconds", "How long the oldest that waits for a worker has been due.", labels=["tier"]
    )
    for tier, of in queue.items():
        for state, number in (("waiting", of.waiting), ("running", of.running), ("suspended", of.suspended)):
            depth.add_metric([tier.value, state], number)
        age.add_metric([tier.value], _age(of.due_since, moment))
    return [
        depth,
        age,
        GaugeMetricFamily("bloxserver_workers_alive", "Workers that have beaten of late.", len(workers)),
        GaugeMetricFamily("bloxserver_schedules_armed", "Schedules of running flows.", schedules.armed),
        GaugeMetricFamily("bloxserver_schedules_due", "Those of them that should have fired.", schedules.due),
    ]


def _age(since: datetime | None, moment: datetime) -> float:
    return 0.0 if since is None else max(0.0, (moment - since).total_seconds())


def _pools() -> Iterator[Metric]:
    size = GaugeMetricFamily("bloxserver_database_pool_size", "Connections that the pool may hold.", labels=["pool"])
    used = GaugeMetricFamily("bloxserver_database_pool_checked_out", "Connections that are in use.", labels=["pool"])
    for name, pool in models_database.database.pools().items():
        size.add_metric([name], pool.size())
        used.add_metric([name], pool.checkedout())
    return iter((size, used))
