"""Tracing: propagates `traceparent` (W3C Trace Context) and, if an OTLP endpoint is configured, exports spans.

Without an endpoint there are no spans, and `traceparent` is propagated unchanged. OpenTelemetry is imported only if an
endpoint is configured. Its global provider is not set, so that libraries do not create spans.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
TRACEPARENT = re.compile(r"([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?")
FLUSH_SECONDS = 5
"""Maximum time to export the last spans when the process stops."""

Attributes = Mapping[str, str | int]

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)
_provider: TracerProvider | None = None
_tracer: trace.Tracer | None = None


def read_traceparent(values: Sequence[str]) -> str | None:
    """Parse the `traceparent` headers of a request into version 00; None if they are not a single valid one."""
    match = TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, context, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    return f"00-{context}"


def current_traceparent() -> str | None:
    """Return the `traceparent` to store with an execution, or to send with a request."""
    return _current.get()


class Span:
    """A span, or a placeholder that does nothing if tracing is disabled."""

    def __init__(self, span: trace.Span | None = None) -> None:
        self._span = span

    def set_attributes(self, attributes: Attributes, *, name: str | None = None) -> None:
        """Add attributes, and rename the span if `name` is given. Attributes must not contain payloads."""
        if self._span is not None and self._span.is_recording():
            self._span.set_attributes(attributes)
            if name is not None:
                self._span.update_name(name)

    def fail(self, code: str) -> None:
        """Mark the span as failed with an error code."""
        if self._span is not None and self._span.is_recording():
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)


NO_SPAN = Span()
_NO_CHILD = nullcontext(NO_SPAN)


@contextmanager
def continue_trace(
    name: str,
    traceparent: str | None,
    attributes: Attributes,
    kind: Literal["INTERNAL", "SERVER", "CONSUMER"] = "INTERNAL",
) -> Iterator[Span]:
    """Open a span in the trace of `traceparent`, or in a new trace. It is the current span inside the block."""
    span = None
    if _tracer is not None:
        span = _start_span(_tracer, name, traceparent, attributes, kind)
        traceparent = _to_traceparent(span)
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


def child_span(name: str, attributes: Attributes) -> AbstractContextManager[Span]:
    """Open a child of the current span."""
    return _NO_CHILD if _tracer is None else continue_trace(name, _current.get(), attributes)


def _start_span(
    tracer: trace.Tracer, name: str, traceparent: str | None, attributes: Attributes, kind: str
) -> trace.Span:
    from opentelemetry import trace
    from opentelemetry.context import Context

    context = Context()
    parsed = read_traceparent([traceparent]) if traceparent else None
    if parsed is not None:
        _, trace_id, span_id, flags = parsed.split("-")
        parent = trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
    return tracer.start_span(name, context, trace.SpanKind[kind], attributes)


def _to_traceparent(span: trace.Span) -> str | None:
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def start_tracing(settings: Settings) -> None:
    """Export spans if an endpoint is configured. OpenTelemetry reads the other `OTEL_…` variables itself."""
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
        log.warning("tracing disabled: bloxserver[tracing] is not installed")
        return
    resource = Resource.create({SERVICE_VERSION: __version__})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "bloxserver"}))
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    _tracer = _provider.get_tracer("bloxserver", __version__)
    log.info("tracing enabled")


async def stop_tracing(*, flush_seconds: float = FLUSH_SECONDS) -> None:
    """Disable tracing, and export ended spans for at most `flush_seconds`."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        # A daemon thread, so that an unresponsive collector does not delay the exit of the process.
        thread: Any = threading.Thread(target=provider.shutdown, name="tracing-shutdown", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, flush_seconds)
