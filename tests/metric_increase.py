"""Measures by how much a metric increases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bloxserver.observability.metrics import REGISTRY


@dataclass
class Increase:
    number: float = 0


@contextmanager
def measure_increase(name: str, **labels: str) -> Iterator[Increase]:
    """Measure by how much a sample increases in the block. Read the result after the block."""
    before = REGISTRY.get_sample_value(name, labels) or 0
    increase = Increase()
    yield increase
    increase.number = (REGISTRY.get_sample_value(name, labels) or 0) - before
