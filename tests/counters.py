"""What the process counts, in a test: how much more than before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bloxserver.observability.metrics import REGISTRY


@dataclass
class Counted:
    number: float = 0


@contextmanager
def counted(name: str, **labels: str) -> Iterator[Counted]:
    """By how much a sample grew in the block, to be read after it."""
    before = REGISTRY.get_sample_value(name, labels) or 0
    counted = Counted()
    yield counted
    counted.number = (REGISTRY.get_sample_value(name, labels) or 0) - before
