"""CPU time of processes, in seconds. Available only on Linux."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def process_seconds(pid: int) -> float | None:
    """Return the CPU seconds of a process and its children, including children that have exited."""
    times = _times(pid)
    return None if times is None else times.own + times.reaped + _children_seconds(pid)


def postgres_seconds(backend: int) -> float | None:
    """Return the CPU seconds of the server with this backend, including processes that have exited."""
    times = _times(backend)
    if times is None or (server := _times(times.parent)) is None or _name(times.parent) != "postgres":
        return None
    return server.own + server.reaped + _children_seconds(times.parent)


def _children_seconds(pid: int) -> float:
    """Return the CPU seconds of running child processes."""
    processes = [_times(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit()]
    return sum(process.own for process in processes if process is not None and process.parent == pid)


def difference(before: float | None, after: float | None) -> float | None:
    """Return the CPU seconds between two measurements; None if one is missing."""
    return None if before is None or after is None else after - before


def format_seconds(seconds: float | None) -> str:
    """Format CPU seconds for the table."""
    return "?" if seconds is None else f"{seconds:.1f} s"


class _Times:
    def __init__(self, stat: str) -> None:
        # The process name is in parentheses and can contain parentheses.
        fields = stat.rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        self.parent = int(fields[1])
        self.own = (int(fields[11]) + int(fields[12])) / tick
        self.reaped = (int(fields[13]) + int(fields[14])) / tick


def _times(pid: int) -> _Times | None:
    try:
        return _Times((PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def _name(pid: int) -> str:
    return (PROC / str(pid) / "comm").read_text(encoding="utf-8").strip()
