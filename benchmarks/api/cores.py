"""Cores of the processes: the server has one core, all other processes have the others."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.neighbours.memory import descendants

PROC = Path("/proc")


def reserve_server_core() -> int | None:
    """Move this process to the other cores, and with it each process that it starts. Returns the server's core.

    Returns None, and changes nothing, if there is only one core or if the system has no CPU affinity.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    server, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return None
    os.sched_setaffinity(0, others)
    return server


def pin(pid: int, core: int | None) -> None:
    """Move a process with its threads and its children to the core."""
    if core is None:
        return
    for process in (pid, *descendants(pid)):
        for task in (PROC / str(process) / "task").iterdir():
            os.sched_setaffinity(int(task.name), {core})
