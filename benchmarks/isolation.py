"""Measures the process pool: its start, its memory, and the time of a task. Uses no database."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence

from benchmarks import isolation_tasks
from benchmarks.installation import BenchmarkEnvironment
from benchmarks.results import Result, summarize
from benchmarks.sizes import Sizes
from bloxserver.isolation.functions import PRELOADED, REHEARSED
from bloxserver.isolation.pool import Pool
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.settings import get_settings

MEBIBYTE = 1024 * 1024
FIELDS = ("Rss", "Pss", "Private_Dirty")
"""Rss counts all pages; Pss divides shared pages among the processes that share them."""


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    results = []
    size = get_settings().isolated_processes
    variants: list[tuple[str, Sequence[str], Mapping[str, bytes]]] = [
        ("all preloaded", PRELOADED, REHEARSED),
        ("modules preloaded", PRELOADED, {}),
        ("nothing preloaded", (), {}),
    ]
    for name, preloaded, rehearsed in variants:
        pool = Pool(size, functions=isolation_tasks.FUNCTIONS, preloaded=preloaded, rehearsed=rehearsed)
        try:
            started = time.perf_counter()
            server = int((await _run(pool, "fork_server")).decode())
            first = time.perf_counter() - started
            results.append(Result("isolation", kind, f"first task, {name}", f"{first * 1000:.0f} ms"))
            request = DEFAULT_ORGANISM.encode()
            work = (_run(pool, "check_and_pause", request, tenant) for tenant in range(size))
            each = [json.loads(body) for body in await asyncio.gather(*work)]
            memory = {"fork server": [isolation_tasks.memory_of(server)], f"{size} task processes together": each}
            results += [
                Result("isolation", kind, f"{what}, {name}", _format_memory(processes))
                for what, processes in memory.items()
            ]
            if rehearsed:
                results += [
                    Result("isolation", kind, f"task of {text}", summarize(await _times(pool, body, sizes), digits=2))
                    for text, body in (("1 byte", b"x"), ("1 MiB", bytes(MEBIBYTE)))
                ]
        finally:
            pool.close()
    return results


async def _run(pool: Pool, function: str, request: bytes = b"", tenant: int = 0) -> bytes:
    return (await pool.run(function, request, tenant=tenant, share=1)).body


async def _times(pool: Pool, request: bytes, sizes: Sizes) -> Sequence[float]:
    """Return the milliseconds of tasks, one after the other."""
    times = []
    for _ in range(sizes.tasks):
        started = time.perf_counter()
        await _run(pool, "echo", request)
        times.append((time.perf_counter() - started) * 1000)
    return times


def _format_memory(processes: list[dict[str, int]]) -> str:
    return ", ".join(f"{field} {sum(one.get(field, 0) for one in processes) / 1024:.0f} MiB" for field in FIELDS)
