"""The memory of the server before and after many requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.api.generator import Load
from benchmarks.api.history import History
from benchmarks.api.requests import ENDPOINTS, OURS
from benchmarks.api.servers import Server, generate
from benchmarks.neighbours.memory import descendants

PROC = Path("/proc")
CONNECTIONS = 16
MAX_SECONDS = 3_600
WARM_UP_DIVISOR = 5
"""The warm-up has a fifth of the requests. It fills caches: on SQLite, that of each connection has 2 MB."""


@dataclass(frozen=True)
class MemoryGrowth:
    """Bytes of the server and its child processes. PSS depends on other processes, which share libraries with it."""

    requests: int
    rss_before: int
    pss_before: int
    rss_after: int
    pss_after: int


async def measure_memory(server: Server, history: History, token: str | None, requests: int) -> MemoryGrowth:
    """Send requests to all endpoints in turn. The warm-up comes in addition."""
    await _send(server, history, token, max(1, requests // WARM_UP_DIVISOR))
    rss_before, pss_before = read_memory(server.pid)
    await _send(server, history, token, requests)
    return MemoryGrowth(requests, rss_before, pss_before, *read_memory(server.pid))


async def _send(server: Server, history: History, token: str | None, count: int) -> None:
    measured = await generate(
        Load(
            port=server.port,
            connections=CONNECTIONS,
            seconds=MAX_SECONDS,
            requests=[endpoint.request(OURS, history, token) for endpoint in ENDPOINTS.values()],
            addresses=CONNECTIONS,
            maximum=count,
        )
    )
    if measured.failures or measured.answered != count:
        raise RuntimeError(f"{measured.answered} of {count} requests were answered: {measured.statuses}")


def read_memory(pid: int) -> tuple[int, int]:
    """Return RSS and PSS of a process and its children, in bytes; zeros on systems other than Linux."""
    totals = [_rollup(process) for process in (pid, *descendants(pid))]
    return sum(rss for rss, _ in totals), sum(pss for _, pss in totals)


def _rollup(pid: int) -> tuple[int, int]:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    sizes = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.MULTILINE))
    return int(sizes["Rss"]) * 1024, int(sizes["Pss"]) * 1024
