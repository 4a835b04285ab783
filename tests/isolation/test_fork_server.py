"""What task processes have from the processes that started them."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import pytest

from bloxserver.isolation.fork_server import IGNORED
from bloxserver.isolation.pool import Pool
from bloxserver.isolation.processes import ForkServer
from tests.isolation.tasks import FUNCTIONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")


@pytest.fixture
async def described(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("STRIPE_API_KEY", "secret")
    description: dict[str, Any] = json.loads((await pool.run("describe", b"", tenant="a", share=1)).body)
    return description


async def test_task_process_has_no_other_descriptors_than_its_connection(described: dict[str, Any]) -> None:
    opened = described["descriptors"]
    assert [opened.pop(number) for number in "012"] == [os.devnull] * 3
    [connection] = opened.values()
    assert connection.startswith("socket:")


async def test_fork_server_has_no_descriptors_of_task_processes(described: dict[str, Any]) -> None:
    opened = described["parent_descriptors"]
    assert [opened.pop(number) for number in "01"] == [os.devnull] * 2
    assert opened.pop("2") == os.readlink("/proc/self/fd/2")
    [connection] = opened.values()
    assert connection.startswith("socket:")


async def test_fork_server_has_one_thread(described: dict[str, Any]) -> None:
    assert described["parent_threads"] == 1


async def test_task_process_has_no_settings_in_its_environment(described: dict[str, Any]) -> None:
    assert "PATH" in described["environment"]
    assert not {"STRIPE_API_KEY", "DATABASE_URL"} & described["environment"].keys()


async def test_task_process_has_its_own_group_and_yields_to_event_loops(described: dict[str, Any]) -> None:
    assert described["group"] == described["pid"]
    assert described["niceness"] == min(19, os.nice(0) + 10)


async def test_termination_of_the_service_does_not_end_tasks_before_their_process(described: dict[str, Any]) -> None:
    assert set(IGNORED) <= set(described["ignored"])
    assert signal.SIGALRM not in described["ignored"]


async def test_one_connection_that_fails_does_not_end_the_fork_server() -> None:
    server = ForkServer([])
    try:
        process = server.fork()
        other = server.fork()
        process.kill()
        assert process.end() is process.end()
        assert not other.has_ended()
        assert server.end(process.number) == (0, 0.0)
        other.end()
    finally:
        server.close()


async def test_preloaded_modules_of_the_package_start_no_thread() -> None:
    """A fork with several threads could copy a lock that is never released."""
    pool = Pool(2, functions=FUNCTIONS)
    try:
        description = json.loads((await pool.run("describe", b"", tenant="a", share=1)).body)
    finally:
        pool.close()
    assert description["parent_threads"] == 1
