"""Why a task has no result."""

from __future__ import annotations

from typing import Literal


class IsolationError(Exception):
    """The task has no result."""

    cpu_seconds = 0.0
    """The CPU time of the task until it ended."""


class ResourceExceeded(IsolationError):
    """The task exceeded one of its limits, and was ended."""

    def __init__(self, resource: Literal["cpu", "memory", "time"]) -> None:
        super().__init__(f"the task exceeded its {resource} limit")
        self.resource = resource


class RequestTooLarge(IsolationError):
    """The request has more bytes than allowed."""


class TaskCrashed(IsolationError):
    """The task raised an unexpected exception, or its process ended unexpectedly."""


class IsolationUnavailable(IsolationError):
    """No process can be started now, or too many tasks of the tenant are waiting."""
