"""The limits of this process. How they end tasks is tested with the pool."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator

import pytest

from bloxserver.isolation.limits import TaskLimits, address_space, apply_limits, cpu_seconds, lift_limits

LARGE = TaskLimits(cpu_seconds=1_000, seconds=2_000, memory_bytes=1 << 40)
ROUNDING = 0.1
"""The system rounds timers up to its ticks."""


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    lift_limits(None)
    resource.setrlimit(resource.RLIMIT_AS, before)


def timers() -> tuple[float, float]:
    return signal.getitimer(signal.ITIMER_PROF)[0], signal.getitimer(signal.ITIMER_REAL)[0]


def test_limits_are_set_and_lifted() -> None:
    apply_limits(LARGE, 1 << 30)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == (1 << 30) + (1 << 40)
    cpu, real = timers()
    assert 0 < cpu <= 1_000 + ROUNDING < real <= 2_000 + ROUNDING
    lift_limits(1 << 30)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    assert (soft, timers()) == (hard, (0, 0))


def test_unknown_address_space_is_not_limited() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    apply_limits(LARGE, None)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert timers() > (0, 0)


def test_address_space_is_larger_than_the_resident_memory() -> None:
    size = address_space()
    assert size is None or size > 50 * 1024 * 1024


def test_cpu_time_increases_with_work() -> None:
    before, end = cpu_seconds(), time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert cpu_seconds() - before >= 0.04
