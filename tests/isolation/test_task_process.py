"""Which tasks a process runs before it ends."""

from __future__ import annotations

import os
import select
import sys
from contextlib import closing

import pytest

from bloxserver.isolation.limits import TaskLimits
from bloxserver.isolation.processes import ForkServer
from bloxserver.isolation.task_process import MAX_TASKS
from tests.isolation.tasks import FUNCTIONS


def test_process_ends_after_a_number_of_tasks() -> None:
    with closing(ForkServer([])) as server:
        process = server.fork()
        for _ in range(MAX_TASKS - 1):
            process.run(FUNCTIONS["echo"], TaskLimits(), b"")
        assert process.is_usable
        assert process.run(FUNCTIONS["echo"], TaskLimits(), b"last").body == b"last"
        assert not process.is_usable


@pytest.mark.skipif(sys.platform != "linux", reason="uses process descriptors")
def test_time_limit_ends_with_its_task() -> None:
    with closing(ForkServer([])) as server:
        process = server.fork()
        pidfd = os.pidfd_open(process.number)
        process.run(FUNCTIONS["echo"], TaskLimits(seconds=0.1), b"")
        ended, _, _ = select.select([pidfd], [], [], 0.3)
        os.close(pidfd)
        process.end()
        assert not ended
