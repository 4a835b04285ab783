"""Garbage collection of a server."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bloxserver import gc_tuning


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Restore the state of the garbage collector."""
    yield
    gc.unfreeze()
    gc.enable()


def test_existing_objects_are_frozen_and_later_ones_are_collected() -> None:
    gc_tuning.pause()
    assert not gc.isenabled()
    before = gc.get_freeze_count()
    gc_tuning.freeze_heap()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


IMPORT = """
import gc

generations = []
gc.callbacks.append(lambda phase, info: generations.append(phase))
import bloxserver.api.main
print(len(generations) // 2, gc.get_threshold()[0], gc.get_freeze_count() > 100_000, gc.isenabled())
"""


def test_import_of_the_application_starts_no_collection() -> None:
    printed = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout
    collections, *state = printed.split()
    assert int(collections) <= 5, "Python's default starts about 100"
    assert state == [str(gc_tuning.YOUNG_OBJECTS), "True", "True"]
