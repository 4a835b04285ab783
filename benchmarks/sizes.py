"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    latency_samples: int = 120
    backlog: int = 10_000
    """Executions of the throughput and of the scaling benchmark."""
    users: int = 12
    rounds: int = 3
    """Of the scaling benchmark: a run with one worker, and one with two."""
    idle_settle_seconds: float = 5
    idle_seconds: float = 20
    waiting: int = 1_000
    answer_seconds: float = 5
    """How long the slow server takes for an answer."""
    flood: int = 10_000
    others: int = 20
    queued: int = 50_000
    many_users: int = 1_000
    claims: int = 20
    bare: int = 5_000


SMALL = Sizes(
    latency_samples=3,
    backlog=24,
    users=4,
    rounds=1,
    idle_settle_seconds=0.1,
    idle_seconds=0.2,
    waiting=5,
    answer_seconds=0.2,
    flood=30,
    others=3,
    queued=50,
    many_users=10,
    claims=2,
    bare=30,
)
"""Enough to see that the benchmarks run; no figure of them means anything."""
