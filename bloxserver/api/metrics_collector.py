"""Metrics that are read at each scrape: the connection pools, and the queue, workers and schedules in the database."""

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
from bloxserver.queries.execution_costs import NANO, day_of, read_cost_since
from bloxserver.queries.overview import read_queue, read_schedules, read_unsent_since, read_workers
from bloxserver.settings import get_settings

log = structlog.stdlib.get_logger("bloxserver.observability.metrics")

READ_TIMEOUT_SECONDS = 5
"""Timeout of the database reads. A longer one could exceed Prometheus' scrape timeout and lose all metrics."""


async def collect_metrics(sessions: SessionSource) -> list[Metric]:
    """The metrics. If the database is unavailable: `bloxserver_database_up 0` and the pools."""
    up = GaugeMetricFamily("bloxserver_database_up", "Whether the database could be read for this scrape.")
    try:
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            families = await _read(sessions)
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
        log.warning("database metrics unavailable", error=type(error).__name__)
        families = []
    up.add_metric([], float(bool(families)))
    return [up, *_pools(), *families]


async def _read(sessions: SessionSource) -> list[Metric]:
    moment, settings = now(), get_settings()
    async with sessions.reading() as session:
        queue = await read_queue(session, moment)
        workers = await read_workers(session, timedelta(seconds=settings.heartbeat_timeout_seconds))
        schedules = await read_schedules(session, moment)
        unsent_since = None if settings.stripe_secret_key is None else await read_unsent_since(session)
        limit = settings.llm_daily_max_usd
        spending = None if limit is None else await read_cost_since(session, day_of(moment), None) / NANO
    depth = GaugeMetricFamily(
        "bloxserver_queue_executions",
        "Executions that have not ended: waiting for a worker, running, or suspended until a time or an answer.",
        labels=["tier", "state"],
    )
    age = GaugeMetricFamily(
        "bloxserver_queue_oldest_seconds",
        "Seconds since the oldest execution that waits for a worker became due.",
        labels=["tier"],
    )
    for tier, counts in queue.items():
        for state in ("waiting", "running", "suspended"):
            depth.add_metric([tier.value, state], getattr(counts, state))
        age.add_metric([tier.value], _age(counts.due_since, moment))
    return [
        depth,
        age,
        GaugeMetricFamily("bloxserver_workers_alive", "Workers with a recent heartbeat.", len(workers)),
        GaugeMetricFamily("bloxserver_schedules_armed", "Schedules of running flows.", schedules.armed),
        GaugeMetricFamily("bloxserver_schedules_due", "Schedules of running flows that are overdue.", schedules.due),
        GaugeMetricFamily(
            "bloxserver_metering_lag_seconds",
            "Age of the oldest report of usage that Stripe has not accepted.",
            _age(unsent_since, moment),
        ),
        GaugeMetricFamily(
            "bloxserver_llm_spending_today_usd",
            "Cost in US dollars of today's calls of language models with the operator's keys.",
            spending,
        ),
        GaugeMetricFamily("bloxserver_llm_daily_limit_usd", "The operator's budget for a day in US dollars.", limit),
    ]


def _age(since: datetime | None, moment: datetime) -> float:
    return 0.0 if since is None else max(0.0, (moment - since).total_seconds())


def _pools() -> Iterator[Metric]:
    size = GaugeMetricFamily(
        "bloxserver_database_pool_size", "Maximum number of connections in the pool.", labels=["pool"]
    )
    used = GaugeMetricFamily("bloxserver_database_pool_checked_out", "Connections in use.", labels=["pool"])
    waiting = GaugeMetricFamily("bloxserver_database_pool_waiting", "Tasks that wait for one.", labels=["pool"])
    for name, pool in models_database.database.pools().items():
        size.add_metric([name], pool.size())
        used.add_metric([name], pool.checkedout())
        waiting.add_metric([name], pool.waiting())
    return iter((size, used, waiting))
