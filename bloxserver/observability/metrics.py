"""Prometheus metrics of this process.

Label values come from small, fixed sets: never ids, paths, or names that users choose. `api.metrics_collector` reads
metrics of the database at each scrape.
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
PROVIDER_LAG_BUCKETS = (0.5, 1, 2.5, 5, 15, 60, 300, 1800, 3600, 21_600, 86_400, 259_200)
"""Up to three days, for which Stripe sends an event again."""

# A `_created` series for each metric, which Prometheus does not use.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
"""The registry of this process. The library's default registry is not served, because any library can add to it."""

ProcessCollector(registry=REGISTRY)
BUILD = Gauge("bloxserver_build_info", "1, with the version as a label.", ["version", "python"], registry=REGISTRY)
BUILD.labels(__version__, platform.python_version()).set(1)

# --- The API ---

REQUESTS = Counter("bloxserver_http_requests_total", "HTTP requests.", ["method", "route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "bloxserver_http_request_duration_seconds",
    "Time from the request's headers to the end of the response.",
    ["method", "route"],
    buckets=REQUEST_BUCKETS,
    registry=REGISTRY,
)
CONNECTIONS_CLOSED = Counter(
    "bloxserver_connections_closed_total",
    "Connections that were closed because of a limit or a timeout.",
    ["reason"],
    registry=REGISTRY,
)
RATE_LIMITED = Counter(
    "bloxserver_rate_limited_total", "Requests that exceeded a rate limit.", ["limit"], registry=REGISTRY
)

STRIPE_ERRORS = Counter(
    "bloxserver_stripe_errors_total",
    "Requests to Stripe that failed, by the kind of error.",
    ["kind"],
    registry=REGISTRY,
)
LLM_BREAKER_OPEN = Gauge(
    "bloxserver_llm_breaker_open",
    "1 while the circuit breaker of a provider of language models is not closed, as this process knows it.",
    ["provider"],
    registry=REGISTRY,
)
LLM_REQUESTS = Counter(
    "bloxserver_llm_requests_total",
    "Requests to providers of language models, by outcome: success, refused by the circuit breaker, or an error.",
    ["provider", "outcome"],
    registry=REGISTRY,
)
LLM_LIMITED = Counter(
    "bloxserver_llm_limited_total",
    "Calls of language models that a limit of the user's plan or the operator's daily budget refused.",
    ["limit"],
    registry=REGISTRY,
)
LLM_CACHE = Counter(
    "bloxserver_llm_cache_total",
    "Calls of language models by use of the cache: hit, coalesced with an equal request, miss, or bypass.",
    ["result"],
    registry=REGISTRY,
)
LLM_CACHE_BYTES = Gauge("bloxserver_llm_cache_bytes", "Memory of the responses that are kept.", registry=REGISTRY)
LLM_QUEUE_DEPTH = Gauge(
    "bloxserver_llm_queue_depth",
    "Calls of language models that wait for a slot of a provider.",
    ["provider", "tier"],
    registry=REGISTRY,
)
LLM_QUEUE_WAIT_SECONDS = Histogram(
    "bloxserver_llm_queue_wait_seconds",
    "Time for which a call of a language model waited for a slot of a provider.",
    ["tier"],
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
LLM_SHED = Counter(
    "bloxserver_llm_shed_total",
    "Calls of language models that were refused because too many wait, or that waited too long.",
    ["tier", "reason"],
    registry=REGISTRY,
)
METER_REPORTS = Counter(
    "bloxserver_meter_reports_total",
    "Reports of usage to Stripe, by outcome: sent, or failed and kept for reconciliation.",
    ["outcome"],
    registry=REGISTRY,
)
ACCOUNT_EMAILS = Counter(
    "bloxserver_account_emails_total",
    "Emails to users about their account, by outcome: sent, retried, failed, unknown or expired.",
    ["outcome"],
    registry=REGISTRY,
)

PROVIDER_EVENTS = Counter(
    "bloxserver_provider_events_total",
    "Events that Stripe and Clerk sent, by outcome: processed, repeated, invalid_signature, refused or failed.",
    ["provider", "outcome"],
    registry=REGISTRY,
)
PROVIDER_EVENT_LAG_SECONDS = Histogram(
    "bloxserver_provider_event_lag_seconds",
    "Time from the creation of an event at Stripe or Clerk until it was processed.",
    ["provider"],
    buckets=PROVIDER_LAG_BUCKETS,
    registry=REGISTRY,
)

# --- Executions ---

EXECUTIONS_ACCEPTED = Counter(
    "bloxserver_executions_accepted_total", "Executions that were accepted.", ["trigger"], registry=REGISTRY
)
EXECUTIONS_ENDED = Counter(
    "bloxserver_executions_ended_total", "Executions that ended.", ["status", "trigger"], registry=REGISTRY
)
QUEUE_WAIT_SECONDS = Histogram(
    "bloxserver_queue_wait_seconds",
    "Time from when an execution was due until a worker claimed it.",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
START_SECONDS = Histogram(
    "bloxserver_start_latency_seconds",
    "Time from the acceptance of an execution until its first step started.",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
STEPS = Counter("bloxserver_steps_total", "Attempts of steps.", ["handler", "outcome"], registry=REGISTRY)
STEP_SECONDS = Histogram(
    "bloxserver_step_duration_seconds",
    "Duration of an attempt of a step.",
    ["handler"],
    buckets=WORK_BUCKETS,
    registry=REGISTRY,
)
CLAIM_BATCH_SIZE = Histogram(
    "bloxserver_claim_batch_size", "Executions claimed in one transaction.", buckets=BATCH_BUCKETS, registry=REGISTRY
)
CHECKPOINT_BATCH_SIZE = Histogram(
    "bloxserver_checkpoint_batch_size",
    "Checkpoints written in one transaction.",
    buckets=BATCH_BUCKETS,
    registry=REGISTRY,
)
EXECUTIONS_RECOVERED = Counter(
    "bloxserver_executions_recovered_total", "Executions recovered from dead workers.", registry=REGISTRY
)
EXECUTIONS_ABANDONED = Counter(
    "bloxserver_executions_abandoned_total",
    "Executions that were ended because they could no longer run.",
    registry=REGISTRY,
)

# --- Schedules ---

SCHEDULE_FIRINGS = Counter(
    "bloxserver_schedule_firings_total",
    "Due schedules by outcome: fired, rejected by a limit, missed for too long, or invalid.",
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
    "Wait for a connection from the pool.",
    ["pool"],
    buckets=WAIT_BUCKETS,
    registry=REGISTRY,
)
RETENTION_DELETED = Counter(
    "bloxserver_retention_deleted_total", "Rows deleted by retention.", ["kind"], registry=REGISTRY
)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()
        yield from self._families


def render_metrics(families: Iterable[Metric] = ()) -> bytes:
    """Return the metrics of this process and `families` in Prometheus' text format."""
    return generate_latest(_Families(families))
