"""`python`: the processes in which snippets run."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.plans import PLANS
from tests.blocks.snippets import LOOP, run


def workers(ancestor: int, ticks: int = 0) -> set[int]:
    """Return the interpreters that descendants of a process have started and that have used at least `ticks` of CPU
    time.
    """
    names, parents, used = {}, {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            start, _, rest = status.read_text().rpartition(") ")
        except OSError:
            continue  # the process has just ended
        pid, fields = int(status.parent.name), rest.split()
        names[pid], parents[pid], used[pid] = start.partition("(")[2], int(fields[1]), int(fields[11])

    def is_descendant(pid: int) -> bool:
        parent = parents.get(pid, 0)
        return parent == ancestor or (parent != 0 and is_descendant(parent))

    return {pid for pid, name in names.items() if name == "monty" and used[pid] >= ticks and is_descendant(pid)}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


async def worker(ancestor: int, ticks: int = 5) -> int:
    """Return the interpreter of a looping snippet, when it has used at least `ticks` of CPU time.

    In this process, the task of the snippet must not have run yet: interpreters of earlier tests may still be ending.
    """
    earlier = workers(ancestor) if ancestor == os.getpid() else set()
    async with asyncio.timeout(20):
        while not (found := workers(ancestor, ticks) - earlier):  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.01)
    [pid] = found
    return pid


def ends_within(pidfd: int, seconds: float) -> bool:
    """Return whether a process ends within a time."""
    return bool(select.select([pidfd], [], [], seconds)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
class TestProcesses:
    async def test_snippets_do_not_block_the_event_loop(self, context: BlockContext) -> None:
        looping = asyncio.create_task(run(context, LOOP, timeout_seconds=30))
        pid = await worker(os.getpid())
        for number in range(3):
            assert await run(context, "payload + 1", number) == number + 1
        assert not looping.done()
        assert pid in workers(os.getpid())
        looping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looping

    async def test_endless_snippets_do_not_delay_those_of_another_user(self, context: BlockContext) -> None:
        looping = [asyncio.create_task(run(context, LOOP, timeout_seconds=30)) for _ in range(100)]
        await worker_count(2)
        other = replace(context, isolated=IsolatedTasks(uuid4(), PLANS["free"]))
        for number in range(3):
            assert await run(other, "payload + 1", number) == number + 1
        assert not any(task.done() for task in looping)
        for task in looping:
            task.cancel()
        await asyncio.wait(looping)

    async def test_interpreter_has_no_connection_to_the_pool(self, context: BlockContext) -> None:
        looping = asyncio.create_task(run(context, LOOP, timeout_seconds=30))
        pid = await worker(os.getpid())
        opened = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        assert opened
        assert not [target for target in opened if target.startswith("socket:")]
        looping.cancel()
        await asyncio.gather(looping, return_exceptions=True)

    async def test_cancellation_kills_the_process(self, context: BlockContext) -> None:
        looping = asyncio.create_task(run(context, LOOP, timeout_seconds=30))
        pidfd = os.pidfd_open(await worker(os.getpid()))
        looping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looping
        assert await asyncio.to_thread(ends_within, pidfd, 5)
        os.close(pidfd)

    async def test_killed_process_is_a_retryable_error_and_is_replaced(self, context: BlockContext) -> None:
        looping = asyncio.create_task(run(context, LOOP, timeout_seconds=30))
        os.kill(await worker(os.getpid()), 9)
        with pytest.raises(BlockError) as caught:
            await looping
        assert (caught.value.code, caught.value.retryable) == ("python_failed", True)
        assert await run(context, "'next'") == "next"

    async def test_snippets_over_the_share_of_their_user_wait(self, context: BlockContext) -> None:
        numbers: list[JsonValue] = list(range(20))
        answers = await asyncio.gather(*(run(context, "payload", number) for number in numbers))
        assert answers == numbers

    async def test_finished_snippets_leave_no_process(self, context: BlockContext) -> None:
        assert await run(context, "1") == 1
        assert workers(os.getpid()) == set()

    async def test_cpu_time_of_snippets_is_counted(self, context: BlockContext) -> None:
        used = []
        for code in ("1", "n = 0\nwhile n < 2_000_000:\n    n += 1"):
            tasks = IsolatedTasks(uuid4(), PLANS["free"])
            await run(replace(context, isolated=tasks), code, timeout_seconds=30)
            used.append(tasks.cpu_seconds)
        assert 0 < 5 * used[0] < used[1]

    async def test_cpu_time_of_an_interpreter_that_was_killed_with_its_task_is_counted(
        self, context: BlockContext
    ) -> None:
        tasks = IsolatedTasks(uuid4(), PLANS["free"])
        looping = asyncio.create_task(run(replace(context, isolated=tasks), LOOP, timeout_seconds=30))
        pid = await worker(os.getpid(), ticks=20)
        os.kill(parent_of(pid), 9)
        with pytest.raises(BlockError) as caught:
            await looping
        assert (caught.value.code, caught.value.retryable) == ("python_failed", True)
        assert tasks.cpu_seconds >= 20 / os.sysconf("SC_CLK_TCK")

    async def test_processes_end_after_the_server_is_killed(self) -> None:
        with subprocess.Popen([sys.executable, "-c", SERVER, LOOP, "30"]) as server:  # noqa: ASYNC220
            try:
                pidfd = os.pidfd_open(await worker(server.pid))
            finally:
                server.kill()
        assert await asyncio.to_thread(ends_within, pidfd, 15)
        os.close(pidfd)

    @pytest.mark.parametrize("code", ["print('x' * 10000)", "open('/x')", LOOP])
    def test_server_exits_cleanly_after_snippets(self, code: str) -> None:
        served = subprocess.run([sys.executable, "-c", SERVER, code, "0.1"], capture_output=True, timeout=30)
        assert (served.returncode, served.stdout, served.stderr) == (0, b"", b"")


async def worker_count(count: int) -> None:
    """Wait until this number of interpreters is running."""
    async with asyncio.timeout(20):
        while len(workers(os.getpid())) < count:  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.01)


SERVER = """
import asyncio, sys
from types import SimpleNamespace
from uuid import uuid4
from bloxserver.blocks.base import BlockError
from bloxserver.blocks.python import block
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.plans import FREE

async def main():
    config = block.config.model_construct(code=sys.argv[1], timeout_seconds=float(sys.argv[2]))
    context = SimpleNamespace(isolated=IsolatedTasks(uuid4(), FREE), scope=lambda payload: {"payload": payload})
    try:
        await block.handler(block.payload(None), config, context)
    except BlockError:
        pass

asyncio.run(main())
"""
