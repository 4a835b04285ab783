"""What this process counts and times, for Prometheus.

Labels come from small, fixed sets: never an id, a name that a user chose, or a path. What the database knows is read
at each scrape instead, by `api.scrape`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bloxserver import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30, 60, 300, 1800)
WORK_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
WAIT_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 15)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100)

# They are a second series for each one, which Prometheus has no use for.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
"""Of this process; the library's own, which anything in the process may write to, is not served."""

ProcessCollector(registry=REGISTRY)
BUILD = Gauge("bloxserver_build_info", "1, with the version as a label.", ["version", "python"], registry=REGISTRY)
BUILD.labels(__version__, platform.python_version()).set(1)

# --- The API ---

REQUESTS = Counter(
    "bloxserver_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=REGISTRY
)
REQUEST_SECONDS = Histogram(
    "bloxserver_http_request_duration_seconds",
    "Time from a request's head to the end of its answer.",
    ["method", "route"],
    buckets=REQUEST_BUCKETS,
    registry=REGISTRY,
)

# --- Executions ---

EXECUTIONS_ACCEPTED = Counter(
    "bloxserver_executions_accepted_total", "Executions accepted.", ["trigger"], registry=REGISTRY
)
EXECUTIONS_ENDED = Counter(
    "bloxserver_executions_ended_total", "Executions ended.", ["status", "trigger"], registry=REGISTRY
)
QUEUE_WAIT_SECONDS = Histogram(
    "bloxserver_queue_wait_seconds",
    "Time from when an execution was due until a worker took it.",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
START_SECONDS = Histogram(
    "bloxserver_start_latency_seconds",
    "Time from an execution's acceptance until its first step began.",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
STEPS = Counter("bloxserver_steps_total", "Attempts at steps.", ["handler", "outcome"], registry=REGISTRY)
STEP_SECONDS = Histogram(
    "bloxserver_step_duration_seconds",
    "Time that one attempt at a step took.",
    ["handler"],
    buckets=WORK_BUCKETS,
    registry=REGISTRY,
)
CLAIM_BATCH_SIZE = Histogram(
    "bloxserver_claim_batch_size", "Executions that were claimed together.", buckets=BATCH_BUCKETS, registry=REGISTRY
)
CHECKPOINT_BATCH_SIZE = Histogram(
    "bloxserver_checkpoint_batch_size", "Checkpoints that were kept together.", buckets=BATCH_BUCKETS, registry=REGISTRY
)
EXECUTIONS_RECOVERED = Counter(
    "bloxserver_executions_recovered_total", "Executions that were taken from dead workers.", registry=REGISTRY
)
EXECUTIONS_ABANDONED = Counter(
    "bloxserver_executions_abandoned_total",
    "Executions ended because they could not be run any more.",
    registry=REGISTRY,
)

# --- Schedules ---

SCHEDULE_FIRINGS = Counter(
    "bloxserver_schedule_firings_total",
    "Firings of schedules that were due: fired, refused by a limit, missed for too long, or invalid.",
    ["outcome"],
    registry=REGISTRY,
)
SCHEDULE_LATENESS_SECONDS = Histogram(
    "bloxserver_schedule_lateness_seconds",
    "Time from when a schedule was due until it fired.",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)

# --- The database ---

POOL_WAIT_SECONDS = Histogram(
    "bloxserver_database_pool_wait_seconds",
    "Time until the pool gave a connection.",
    ["pool"],
    buckets=WAIT_BUCKETS,
    registry=REGISTRY,
)
RETENTION_DELETED = Counter(
    "bloxserver_retention_deleted_total", "Rows that retention deleted.", ["kind"], registry=REGISTRY
)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()
        yield from self._families


def exposition(families: Iterable[Metric] = ()) -> bytes:
    """All metrics of this process, and these, in Prometheus' text format."""
    return generate_latest(_Families(families))
