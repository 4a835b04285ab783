"""Values and errors of the queue that need no database."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from bloxserver.models.enums import ExecutionStatus

LeaseKey = tuple[UUID, UUID]
"""The id of an execution, and a lease that a worker has or had on it."""


class LeaseLost(Exception):
    """The execution has ended, was deleted, or was claimed by another worker."""


class ClaimLockBusy(Exception):
    """Another worker is claiming executions."""


class CalledResult(NamedTuple):
    """The state of an execution that a step called: its output as JSON text, its error."""

    status: ExecutionStatus
    output: str | None
    error: str | None
