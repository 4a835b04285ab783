"""A process pool whose processes have the functions of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bloxserver.isolation.pool import Pool
from tests.isolation.tasks import FUNCTIONS


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Shared by the tests of a module, each of which has its own event loop."""
    pool = Pool(3, functions=FUNCTIONS, preloaded=["tests.isolation.tasks"], rehearsed={})
    yield pool
    pool.close()
