"""Whether the database can be reached, for the log."""

from __future__ import annotations

import time

import structlog

from bloxserver.models.transient_errors import describe_error, is_connection_error

log = structlog.stdlib.get_logger("bloxserver.database")


class Availability:
    """Logs one event when the database connection is lost, and one when it is restored."""

    def __init__(self) -> None:
        self._lost_at: float | None = None

    def failed(self, error: BaseException) -> None:
        if self._lost_at is None and is_connection_error(error):
            self._lost_at = time.monotonic()
            log.warning("database connection lost", reason=describe_error(error))

    def succeeded(self) -> None:
        if self._lost_at is not None:
            log.info("database connection restored", seconds=round(time.monotonic() - self._lost_at, 1))
            self._lost_at = None
