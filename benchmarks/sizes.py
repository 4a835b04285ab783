"""Sizes of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    latency_samples: int = 120
    backlog: int = 10_000
    """Executions in the throughput and scaling benchmarks."""
    users: int = 12
    rounds: int = 3
    """Rounds of the scaling benchmark: one run with one worker, one run with two."""
    idle_settle_seconds: float = 5
    idle_seconds: float = 20
    waiting: int = 1_000
    response_seconds: float = 5
    """Response time of the slow server."""
    waiters: int = 1_000
    """Waiting clients of each kind."""
    ends: int = 60
    """Executions whose ends are awaited."""
    unrelated: int = 4_000
    """Executions that run during the measurement, without a client that waits for them."""
    starts: int = 9
    flood: int = 10_000
    others: int = 20
    queued: int = 50_000
    many_users: int = 1_000
    claims: int = 20
    bare: int = 5_000
    tasks: int = 500
    """Tasks of the isolation benchmark, for each size of a request."""
    expression_sizes: tuple[int, ...] = (1_000, 30_000, 1_000_000)
    """Characters of the texts in expressions."""
    random_expressions: int = 10_000
    totals: int = 2_000
    """Rows that each kind of statement writes in a round of the benchmark of totals."""
    cache_hits: int = 2_000
    llm_calls: int = 1_000
    items: int = 1_000
    """Of the list of a loop."""
    loops: int = 100
    """Executions of the benchmark of loops."""


SMALL = Sizes(
    latency_samples=3,
    backlog=24,
    users=4,
    rounds=1,
    idle_settle_seconds=0.1,
    idle_seconds=0.2,
    waiting=5,
    response_seconds=0.2,
    waiters=3,
    ends=2,
    unrelated=12,
    starts=1,
    flood=30,
    others=3,
    queued=50,
    many_users=10,
    claims=2,
    bare=30,
    tasks=3,
    expression_sizes=(1_000,),
    random_expressions=30,
    totals=200,
    cache_hits=20,
    llm_calls=5,
    items=20,
    loops=2,
)
"""Minimal sizes, to check that the benchmarks run. Their results are meaningless."""
