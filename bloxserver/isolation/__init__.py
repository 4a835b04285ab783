"""Runs work whose size a user controls in other processes, with limits that the operating system enforces.

The event loop of an API or a worker never performs such work itself. Use `isolated` for it: bytes go in, bytes come
out. See docs/security.md, "Work of users".
"""

from bloxserver.isolation.errors import (
    IsolationError,
    IsolationUnavailable,
    RequestTooLarge,
    ResourceExceeded,
    TaskCrashed,
)
from bloxserver.isolation.limits import CpuTime, TaskLimits
from bloxserver.isolation.pool import TaskResult, isolated

__all__ = [
    "CpuTime",
    "IsolationError",
    "IsolationUnavailable",
    "RequestTooLarge",
    "ResourceExceeded",
    "TaskCrashed",
    "TaskLimits",
    "TaskResult",
    "isolated",
]
