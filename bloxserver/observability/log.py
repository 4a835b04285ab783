"""Structured logs: JSON in production, text elsewhere. Never log a token, a key or a payload."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

import structlog

from bloxserver.redaction import Redactor

QUIET_LOGGERS = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "openai",
    "anthropic",
    "uvicorn.access",
    "aiosqlite",
    "asyncio",
    "alembic",
    "bloxserver.models.connection_pool",  # SQLAlchemy names the logger of a pool after the module of its class
)
"""Loggers that log URLs with credentials, or every operation. Only their warnings are logged."""


def configure_logging(*, level: str, as_json: bool, secrets: Iterable[tuple[str, str]] = ()) -> None:
    """Send the logs of BloxServer and of libraries to standard error in one format.

    `secrets` are pairs of a mark and a secret that it replaces in every line.
    """
    redactor = Redactor(secrets)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    # structlog's default traceback shows the values of variables, including secrets, and takes seconds to format.
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    ending: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()] if as_json else [console]
    )
    ending.append(lambda _, __, line: redactor.redact_text(line))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
