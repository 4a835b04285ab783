"""Tasks in processes: results, limits, cancellation, fair shares, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

import pytest

from bloxserver.isolation.errors import (
    IsolationError,
    IsolationUnavailable,
    RequestTooLarge,
    ResourceExceeded,
    TaskCrashed,
)
from bloxserver.isolation.limits import MEBIBYTE, CpuTime, TaskLimits
from bloxserver.isolation.pool import MAX_WAITING, Pool, TaskResult, isolated
from bloxserver.settings import get_settings
from tests.isolation.tasks import FUNCTIONS

LONG = TaskLimits(cpu_seconds=60, seconds=60)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc and process descriptors")

Pipe = Callable[[], "NamedPipe"]


class NamedPipe:
    """A named pipe for `wait_for_pipe`."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.request = str(path).encode()
        self._path = path

    async def writer(self) -> IO[bytes]:
        """Wait until the task reads. It ends when the returned file is closed."""
        return await asyncio.to_thread(self._path.open, "wb")

    async def read_numbers(self) -> list[int]:
        """Wait until a task has written numbers into the pipe, and return them."""
        return [int(number) for number in (await asyncio.to_thread(self._path.read_text)).split()]


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    """Creates named pipes."""
    numbers = iter(range(1_000))
    return lambda: NamedPipe(tmp_path / f"pipe{next(numbers)}")


async def run(
    pool: Pool, function: str, request: bytes = b"", limits: TaskLimits = LONG, tenant: str = "a"
) -> TaskResult:
    return await pool.run(function, request, tenant=tenant, share=8, limits=limits)


async def failure(work: Awaitable[TaskResult]) -> IsolationError:
    with pytest.raises(IsolationError) as caught:
        await work
    return caught.value


async def has_ended(pidfd: int) -> bool:
    """Whether a process ends within ten seconds."""
    return bool((await asyncio.to_thread(select.select, [pidfd], [], [], 10))[0])


class TestResult:
    async def test_response_of_the_function_is_returned(self, pool: Pool) -> None:
        assert (await run(pool, "echo", b"\0\xff")).body == b"\0\xff"
        assert (await run(pool, "echo", b"")).body == b""

    async def test_request_and_response_of_one_megabyte_are_passed_on(self, pool: Pool) -> None:
        request = os.urandom(MEBIBYTE)
        assert (await run(pool, "echo", request)).body == request

    async def test_cpu_time_of_each_task_is_reported(self, pool: Pool) -> None:
        for _ in range(2):
            assert 0.3 <= (await run(pool, "use_cpu", b"0.3")).cpu_seconds < 0.6
        assert (await run(pool, "echo")).cpu_seconds < 0.3

    async def test_unknown_functions_are_rejected(self, pool: Pool) -> None:
        with pytest.raises(KeyError):
            await run(pool, "missing")

    async def test_requests_over_the_limit_are_rejected(self) -> None:
        allowed = get_settings().max_body_bytes
        error = await failure(isolated("python.run", bytes(allowed + 1), tenant="a"))
        assert (type(error), str(error)) == (RequestTooLarge, f"the request has more than {allowed} bytes")
        error = await failure(isolated("python.run", b"abc", tenant="a", max_bytes=2))
        assert isinstance(error, RequestTooLarge)

    def test_pool_serves_one_event_loop_after_the_other(self, pool: Pool) -> None:
        bodies = [asyncio.run(run(pool, "echo", bytes([number]))).body for number in range(3)]
        assert bodies == [b"\0", b"\1", b"\2"]


class TestLimits:
    @pytest.mark.parametrize(
        ("function", "limits", "resource"),
        [
            ("loop", TaskLimits(cpu_seconds=0.1, seconds=60), "cpu"),
            ("backtrack", TaskLimits(cpu_seconds=0.1, seconds=60), "cpu"),
            ("sleep", TaskLimits(seconds=0.1), "time"),
            ("loop", TaskLimits(cpu_seconds=60, seconds=0.1), "time"),
            ("backtrack", TaskLimits(cpu_seconds=60, seconds=0.1), "time"),
            pytest.param("allocate", TaskLimits(memory_bytes=8 * MEBIBYTE), "memory", marks=LINUX),
            pytest.param("allocate_fast", TaskLimits(), "memory", marks=LINUX),
            ("abort", TaskLimits(), "memory"),
        ],
    )
    async def test_limits_end_a_task_and_the_next_one_runs(
        self, pool: Pool, function: str, limits: TaskLimits, resource: str
    ) -> None:
        error = await failure(run(pool, function, limits=limits))
        assert isinstance(error, ResourceExceeded)
        assert (error.resource, str(error)) == (resource, f"the task exceeded its {resource} limit")
        assert (await run(pool, "echo", b"next")).body == b"next"

    async def test_cpu_time_of_an_ended_task_is_reported(self, pool: Pool) -> None:
        await run(pool, "use_cpu", b"0.5")
        error = await failure(run(pool, "loop", limits=TaskLimits(cpu_seconds=0.3)))
        # On a busy machine, the timer of the limit is early or late: it counts ticks of the system's clock.
        assert 0.1 <= error.cpu_seconds < 0.5

    async def test_response_over_the_limit_is_an_error(self, pool: Pool) -> None:
        assert len((await run(pool, "answer_much", b"%d" % (16 * MEBIBYTE))).body) == 16 * MEBIBYTE
        error = await failure(run(pool, "answer_much", b"%d" % (16 * MEBIBYTE + 1)))
        assert isinstance(error, ResourceExceeded)

    async def test_limits_of_a_task_do_not_apply_to_the_next(self, pool: Pool) -> None:
        await run(pool, "echo", limits=TaskLimits(cpu_seconds=0.2, seconds=0.2, memory_bytes=MEBIBYTE))
        await run(pool, "use_cpu", b"0.3")
        await run(pool, "keep_memory")

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            ("fail", "the task failed: LookupError"),
            ("crash", "the process of the task ended unexpectedly"),
            ("close_connection", "the process of the task ended unexpectedly"),
        ],
    )
    async def test_crash_of_a_task_is_an_error_and_the_next_one_runs(
        self, pool: Pool, function: str, message: str
    ) -> None:
        error = await failure(run(pool, function))
        assert (type(error), str(error)) == (TaskCrashed, message)
        assert (await run(pool, "echo", b"next")).body == b"next"


class TestCancellation:
    @LINUX
    async def test_cancelled_task_is_killed_with_its_children(self, pool: Pool, pipe: Pipe) -> None:
        started = pipe()
        task = asyncio.create_task(run(pool, "start_child", started.request))
        pidfds = [os.pidfd_open(pid) for pid in await started.read_numbers()]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for pidfd in pidfds:
            assert await has_ended(pidfd)
            os.close(pidfd)
        assert (await run(pool, "echo", b"next")).body == b"next"

    async def test_cpu_time_of_a_cancelled_task_is_counted(self, pool: Pool, pipe: Pipe) -> None:
        used, cpu = pipe(), CpuTime()
        work = pool.run("use_cpu_and_wait", used.request, tenant="a", share=8, limits=LONG, cpu=cpu)
        task = asyncio.create_task(work)
        await used.read_numbers()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0.2 <= cpu.seconds < 1

    async def test_cancelled_waiting_task_never_runs(self, pool: Pool, pipe: Pipe, tmp_path: Path) -> None:
        gates = [pipe(), pipe()]
        running = [asyncio.create_task(run(pool, "wait_for_pipe", gate.request)) for gate in gates]
        writers = [await gate.writer() for gate in gates]
        waiting = asyncio.create_task(run(pool, "write_file", str(tmp_path / "written").encode()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for writer in writers:
            writer.close()
        await asyncio.gather(*running)
        await run(pool, "echo")
        assert not (tmp_path / "written").exists()

    async def test_cancellation_at_any_time_leaves_the_pool_usable(self, pool: Pool) -> None:
        for delay in [0, 0, 0.001, 0.002, 0.004, 0.008] * 5:
            tasks = [asyncio.create_task(run(pool, "echo", bytes(100_000), tenant=name)) for name in "abcd"]
            await asyncio.sleep(delay)
            for task in tasks[:2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, TaskResult) for result in results[2:])
        assert (await run(pool, "echo", b"next")).body == b"next"


class TestShares:
    async def test_long_tasks_of_a_tenant_do_not_delay_another(self, pool: Pool, pipe: Pipe) -> None:
        gates = [pipe() for _ in range(100)]
        long = [asyncio.create_task(run(pool, "wait_for_pipe", gate.request)) for gate in gates]
        writers = [await gate.writer() for gate in gates[:2]]
        for number in range(10):
            assert (await run(pool, "echo", bytes([number]), tenant="b")).body == bytes([number])
        assert not any(task.done() for task in long)
        for task in long:
            task.cancel()
        await asyncio.wait(long)
        for writer in writers:
            with suppress(BrokenPipeError):
                writer.close()

    async def test_tenants_take_turns(self, pool: Pool, pipe: Pipe) -> None:
        gates = [pipe() for _ in "cde"]
        running = [
            asyncio.create_task(run(pool, "wait_for_pipe", gate.request, tenant=tenant))
            for gate, tenant in zip(gates, "cde", strict=True)
        ]
        writers = [await gate.writer() for gate in gates]
        order = []

        async def record(tenant: str) -> None:
            await run(pool, "echo", tenant=tenant)
            order.append(tenant)

        tasks = [asyncio.create_task(record(tenant)) for tenant in "aaabbb"]
        await asyncio.sleep(0)  # all wait before the first process is free
        writers.pop().close()
        await asyncio.gather(*tasks)
        assert set(order[:2]) == {"a", "b"}
        assert sorted(order) == ["a", "a", "a", "b", "b", "b"]
        for writer in writers:
            writer.close()
        await asyncio.gather(*running)

    async def test_too_many_waiting_tasks_of_a_tenant_are_rejected(self, pool: Pool, pipe: Pipe) -> None:
        gates = [pipe(), pipe()]
        tasks = [asyncio.create_task(run(pool, "wait_for_pipe", gate.request)) for gate in gates]
        writers = [await gate.writer() for gate in gates]
        tasks += [asyncio.create_task(run(pool, "echo")) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        error = await failure(run(pool, "echo"))
        assert isinstance(error, IsolationUnavailable)
        assert (await run(pool, "echo", b"other", tenant="b")).body == b"other"
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks)


@pytest.fixture
def new_pool() -> Iterator[Pool]:
    with closing(Pool(2, functions=FUNCTIONS, preloaded=[], rehearsed={}, idle_seconds=0.01)) as pool:
        yield pool


@LINUX
class TestProcesses:
    async def test_pool_starts_on_first_use(self, new_pool: Pool) -> None:
        before = children()
        new_pool.close()
        assert children() == before

    async def test_idle_processes_end_and_start_again(self, new_pool: Pool) -> None:
        for _ in range(3):
            process = await described(new_pool, "pid")
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(process)
                assert await has_ended(pidfd)
                os.close(pidfd)

    @pytest.mark.parametrize("killed", ["pid", "parent"])
    async def test_killed_idle_process_is_replaced(self, pool: Pool, killed: str) -> None:
        description = json.loads((await run(pool, "describe")).body)
        # With the fork server, all processes end. Another one than the described one may run the next task.
        ending = [description["pid"]] if killed == "pid" else children_of(description["parent"])
        pidfds = [os.pidfd_open(pid) for pid in ending]
        os.kill(description[killed], signal.SIGKILL)
        for pidfd in pidfds:
            assert await has_ended(pidfd)
            os.close(pidfd)
        assert (await run(pool, "echo", b"next")).body == b"next"

    async def test_killed_process_is_an_error_of_its_task(self, pool: Pool, pipe: Pipe) -> None:
        started = pipe()
        task = asyncio.create_task(run(pool, "start_child", started.request))
        child, process = await started.read_numbers()
        pidfd = os.pidfd_open(child)
        os.kill(process, signal.SIGKILL)
        assert str(await failure(task)) == "the process of the task ended unexpectedly"
        assert await has_ended(pidfd)
        os.close(pidfd)
        assert (await run(pool, "echo", b"next")).body == b"next"

    async def test_killed_fork_server_is_an_error_of_running_tasks_and_is_replaced(
        self, pool: Pool, pipe: Pipe
    ) -> None:
        server = await described(pool, "parent")
        started = pipe()
        task = asyncio.create_task(run(pool, "start_child", started.request))
        child, _ = await started.read_numbers()
        pidfds = [os.pidfd_open(pid) for pid in (child, *children_of(server))]
        os.kill(server, signal.SIGKILL)
        assert str(await failure(task)) == "the process of the task ended unexpectedly"
        for pidfd in pidfds:
            assert await has_ended(pidfd)
            os.close(pidfd)
        assert (await run(pool, "echo", b"next")).body == b"next"
        assert await described(pool, "parent") != server

    async def test_closed_pool_ends_its_tasks_and_processes(self, new_pool: Pool, pipe: Pipe) -> None:
        started = pipe()
        before = children()
        running = asyncio.create_task(run(new_pool, "start_child", started.request))
        waiting = asyncio.create_task(run(new_pool, "echo"))
        pidfds = [os.pidfd_open(pid) for pid in await started.read_numbers()]
        await asyncio.to_thread(new_pool.close)
        assert isinstance(await failure(running), TaskCrashed)
        assert isinstance(await failure(waiting), IsolationUnavailable)
        assert isinstance(await failure(run(new_pool, "echo")), IsolationUnavailable)
        for pidfd in pidfds:
            assert await has_ended(pidfd)
            os.close(pidfd)
        assert children() == before


async def described(pool: Pool, name: str) -> int:
    """Return a number that `describe` returns."""
    number: int = json.loads((await run(pool, "describe")).body)[name]
    return number


def children_of(process: int) -> list[int]:
    """The processes that a process with one thread has started."""
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def children() -> set[str]:
    """The processes that the threads of this process have started."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
