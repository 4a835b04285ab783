"""The fork server as seen from the process that uses it."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from bloxserver.isolation.errors import IsolationUnavailable, ResourceExceeded, TaskCrashed
from bloxserver.isolation.limits import TaskLimits
from bloxserver.isolation.processes import ForkServer
from tests.isolation.tasks import FUNCTIONS


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with closing(ForkServer([])) as server:
        yield server


def test_process_runs_several_tasks(server: ForkServer) -> None:
    process = server.fork()
    for body in (b"1", b"2"):
        assert process.run(FUNCTIONS["echo"], TaskLimits(), body).body == body
    assert process.is_usable
    process.end()
    assert not process.is_usable


def test_process_that_has_grown_is_not_used_again(server: ForkServer) -> None:
    process = server.fork()
    process.run(FUNCTIONS["keep_memory"], TaskLimits(), b"")
    assert not process.is_usable


def test_process_without_memory_is_not_used_again(server: ForkServer) -> None:
    process = server.fork()
    with pytest.raises(ResourceExceeded):
        process.run(FUNCTIONS["allocate_fast"], TaskLimits(), b"")
    assert not process.is_usable


def test_task_that_failed_leaves_its_process_usable(server: ForkServer) -> None:
    process = server.fork()
    with pytest.raises(TaskCrashed, match="LookupError"):
        process.run(FUNCTIONS["fail"], TaskLimits(), b"")
    assert process.run(FUNCTIONS["echo"], TaskLimits(), b"next").body == b"next"
    process.end()


def test_killed_process_fails_its_next_task(server: ForkServer) -> None:
    process = server.fork()
    process.kill()
    with pytest.raises(TaskCrashed):
        process.run(FUNCTIONS["echo"], TaskLimits(), b"")


def test_end_of_an_idle_process_is_noticed(server: ForkServer) -> None:
    process = server.fork()
    assert not process.has_ended()
    server.end(process.number)
    assert process.has_ended()
    process.end()


def test_lack_of_descriptors_does_not_end_the_fork_server(server: ForkServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
        try:
            with pytest.raises(IsolationUnavailable):
                server.fork()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server.fork().end()


def test_commands_to_a_closed_fork_server_fail() -> None:
    server = ForkServer([])
    process = server.fork()
    server.close()
    with pytest.raises(OSError):  # noqa: PT011
        server.fork()
    assert process.end() == (0, 0.0)


def test_fork_server_that_cannot_start_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(ForkServer(["missing_module"])) as server, pytest.raises((EOFError, OSError)):
        server.fork()
    assert "No module named 'missing_module'" in capfd.readouterr().err
