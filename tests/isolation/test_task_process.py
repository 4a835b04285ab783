"""Which tasks a process runs before it ends."""

from __future__ import annotations

from contextlib import closing

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
