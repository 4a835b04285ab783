"""The limits of a task, and how a process sets them for itself."""

from __future__ import annotations

import resource
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """The limits of one task. The operating system enforces them."""

    cpu_seconds: float = 5.0
    """CPU time of the task's process, without processes that the task starts."""
    seconds: float = 10.0
    """Wall-clock time, without the time for which the task waits for a process."""
    memory_bytes: int = 256 * MEBIBYTE
    """Memory in addition to that of an idle process. Enforced on Linux only."""


@dataclass(slots=True)
class CpuTime:
    """The CPU time of several tasks, also of those that failed or were cancelled."""

    seconds: float = 0.0


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
        _limit_address_space(idle_address_space + limits.memory_bytes)
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)


def lift_limits(idle_address_space: int | None) -> None:
    """End the limits of the last task."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if idle_address_space is not None:
        _limit_address_space(resource.RLIM_INFINITY)


def disable_core_dumps() -> None:
    # 0 would not stop a core dump that the system pipes to a program.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _limit_address_space(size: int) -> None:
    """Set the soft limit, at most to the hard limit. Only the soft limit can be lifted again."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY and (size == resource.RLIM_INFINITY or size > hard):
        size = hard
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
