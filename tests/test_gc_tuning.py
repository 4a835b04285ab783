"""Garbage collection of a server."""

from __future__ import annotations

import gc
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


def test_api_raises_the_number_of_objects_that_starts_a_collection() -> None:
    import bloxserver.api  # noqa: F401

    assert gc.get_threshold()[0] == gc_tuning.YOUNG_OBJECTS
