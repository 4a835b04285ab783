"""Traces: what asked for something is kept and passed on (W3C Trace Context) and, where OTLP is configured, told of.

Without an endpoint there are no spans: a `traceparent` that came in goes out as it came. OpenTelemetry is imported
only with one, and its global provider stays untouched: no library begins to tell of what it is given.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import structlog

from bloxserver import __version__
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.stdlib.get_logger("bloxserver.observability.tracing")

HEADER = "traceparent"
FORM = re.compile(r"([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")
FLUSH_SECONDS = 5
"""What is not told by then, when the process ends, never is."""

Attributes = Mapping[str, str | int]

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)
_provider: TracerProvider | None = None
_tracer: trace.Tracer | None = None


def read_traceparent(values: Sequence[str]) -> str | None:
    """What a request's headers of that name say, in version 00; None where they are not one or cannot be one."""
    match = FORM.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, context, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    return f"00-{context}"


def current_traceparent() -> str | None:
    """What is to be kept with what is accepted now, or sent with a request."""
    return _current.get()


class Span:
    """Something that is told of, or nothing where nobody listens."""

    def __init__(self, span: trace.Span | None = None) -> None:
        self._span = span

    def note(self, attributes: Attributes, *, name: str | None = None) -> None:
        """Say more about it: never a payload, nor what may hold one."""
        if self._span is not None and self._span.is_recording():
            self._span.set_attributes(attributes)
            if name is not None:
                self._span.update_name(name)

    def fail(self, code: str) -> None:
        """Say that it failed; `code` is one of ours."""
        if self._span is not None and self._span.is_recording():
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)


NO_SPAN = Span()


@contextmanager
def continued(
    name: str,
    traceparent: str | None,
    attributes: Attributes,
    kind: Literal["INTERNAL", "SERVER", "CONSUMER"] = "INTERNAL",
) -> Iterator[Span]:
    """A span of the trace that `traceparent` names, or of a new one; current within the block."""
    span = None
    if _tracer is not None:
        span = _started(_tracer, name, traceparent, attributes, kind)
        traceparent = _traceparent_of(span)
    token = _current.set(traceparent)
    try:
        yield NO_SPAN if span is None else Span(span)
    except Exception as error:
        if span is not None:
            Span(span).fail(type(error).__name__)
        raise
    finally:
        _current.reset(token)
        if span is not None:
            span.end()


@contextmanager
def within(name: str, attributes: Attributes) -> Iterator[Span]:
    """A span within the current one."""
    if _tracer is None:
        yield NO_SPAN
        return
    with continued(name, _current.get(), attributes) as span:
        yield span


def _started(tracer: trace.Tracer, name: str, traceparent: str | None, attributes: Attributes, kind: str) -> trace.Span:
    from opentelemetry import trace
    from opentelemetry.context import Context

    context = Context()
    known = read_traceparent([traceparent]) if traceparent else None
    if known is not None:
        _, trace_id, span_id, flags = known.split("-")
        parent = trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
    return tracer.start_span(name, context, trace.SpanKind[kind], attributes)


def _traceparent_of(span: trace.Span) -> str | None:
    of = span.get_span_context()
    return f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}" if of.is_valid else None


def start_tracing(settings: Settings) -> None:
    """Begin to tell of spans where an endpoint is configured; OpenTelemetry reads the other `OTEL_…` variables."""
    global _provider, _tracer
    endpoint = settings.otlp_traces_endpoint
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces are sent: bloxserver[tracing] is not installed")
        return
    resource = Resource.create({SERVICE_VERSION: __version__})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "bloxserver"}))
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    _tracer = _provider.get_tracer("bloxserver", __version__)
    log.info("traces are sent")


async def stop_tracing(*, flush_seconds: float = FLUSH_SECONDS) -> None:
    """Send the spans that have ended, for at most `flush_seconds`, and begin no others."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        # A daemon: a collector that does not answer keeps no process from ending.
        thread: Any = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, flush_seconds)
