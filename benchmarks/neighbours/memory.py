"""Reads the memory of processes and of their children from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


class PeakMemory:
    """The largest resident memory that each process of the trees below `roots` has had, in bytes."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self.by_process: dict[int, int] = {}

    def sample(self) -> None:
        for root in self._roots:
            for pid in (root, *descendants(root)):
                self.by_process[pid] = max(self.by_process.get(pid, 0), _peak(pid))

    def kill_all(self) -> None:
        """Kill all processes of the trees: a process that is stuck does not end otherwise."""
        for root in self._roots:
            for pid in (root, *descendants(root)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def highest(self) -> int:
        return max(self.by_process.values(), default=0)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below a process."""
    found: list[int] = []
    for task in _list(PROC / str(pid) / "task"):
        try:
            children = (task / "children").read_text(encoding="ascii").split()
        except OSError:  # the thread or the process has ended
            continue
        for child in map(int, children):
            found += [child, *descendants(child)]
    return found


def _list(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _peak(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
