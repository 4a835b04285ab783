"""The limits of a task, and how a process sets them for itself."""

from __future__ import annotations

import resource
import signal
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """The limits of one task. The operating system enforces them."""

    cpu_seconds: float = 5.0
    seconds: float = 10.0
    """Wall-clock time, without the time for which the task waits for a process."""
    memory_bytes: int = 256 * MEBIBYTE
    """Memory in addition to that of an idle process."""


def address_space() -> int | None:
    """Return the size of the address space of this process in bytes; None if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return None
    return pages * resource.getpagesize()


def apply_limits(limits: TaskLimits, idle_address_space: int | None) -> None:
    """Limit this process from now on. A process that exceeds its time is ended by SIGPROF (CPU) or SIGALRM."""
    if idle_address_space is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (idle_address_space + limits.memory_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)


def lift_limits() -> None:
    """End the limits of the last task."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
