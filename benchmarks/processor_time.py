"""CPU seconds of processes, as Linux counts them; elsewhere there are none to show."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")


def of_process(pid: int) -> float | None:
    """What a process has used so far, in seconds, with the processes that it started, also those that have ended."""
    times = _times(pid)
    return None if times is None else times.own + times.reaped + _of_children(pid)


def of_postgres(backend: int) -> float | None:
    """What the server with this backend has used so far, with all its processes, also those that have ended."""
    times = _times(backend)
    if times is None or (server := _times(times.parent)) is None or _name(times.parent) != "postgres":
        return None
    return server.own + server.reaped + _of_children(times.parent)


def _of_children(pid: int) -> float:
    """Of those that live."""
    processes = [_times(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit()]
    return sum(process.own for process in processes if process is not None and process.parent == pid)


def between(before: float | None, after: float | None) -> float | None:
    """The CPU seconds from one reading to the next."""
    return None if before is None or after is None else after - before


def shown(seconds: float | None) -> str:
    """CPU seconds for the table."""
    return "?" if seconds is None else f"{seconds:.1f} s"


class _Times:
    def __init__(self, stat: str) -> None:
        # The name stands in parentheses and may itself contain some.
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
