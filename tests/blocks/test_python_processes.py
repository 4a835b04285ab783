"""`python`: the processes in which snippets run."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.python import (
    PROCESSES,
)
from tests.blocks.snippets import LOOP, run


def workers(parent: int, ticks: int = 0) -> set[int]:
    """Return the snippet processes of a parent process that have used at least `ticks` of CPU time."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition(") ")
        except OSError:
            continue  # the process has just ended
        fields = rest.split()
        if name.endswith("(monty") and int(fields[1]) == parent and int(fields[11]) >= ticks:
            found.add(int(status.parent.name))
    return found


async def worker(parent: int) -> int:
    """Return the process of a looping snippet. The process that validated the snippet ends at once."""
    async with asyncio.timeout(10):
        while not (found := workers(parent, ticks=10)):  # noqa: ASYNC110  # nothing tells us
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

    async def test_cancellation_kills_the_process(self, context: BlockContext) -> None:
        looping = asyncio.create_task(run(context, LOOP, timeout_seconds=30))
        pidfd = os.pidfd_open(await worker(os.getpid()))
        looping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looping
        assert ends_within(pidfd, 5)
        os.close(pidfd)

    async def test_killed_process_is_a_retryable_error_and_is_replaced(self, context: BlockContext) -> None:
        looping = asyncio.create_task(run(context, LOOP, timeout_seconds=30))
        os.kill(await worker(os.getpid()), 9)
        with pytest.raises(BlockError) as caught:
            await looping
        assert (caught.value.code, caught.value.retryable) == ("python_failed", True)
        assert await run(context, "'next'") == "next"

    async def test_snippets_over_the_process_limit_wait(self, context: BlockContext) -> None:
        numbers: list[JsonValue] = list(range(3 * PROCESSES))
        answers = await asyncio.gather(*(run(context, "payload", number) for number in numbers))
        assert answers == numbers

    async def test_finished_snippets_leave_no_process(self, context: BlockContext) -> None:
        assert await run(context, "1") == 1
        # The pool reaps a process in a separate thread after the answer.
        async with asyncio.timeout(10):
            while workers(os.getpid()):  # noqa: ASYNC110  # nothing tells us
                await asyncio.sleep(0.01)

    async def test_processes_end_at_their_limit_after_the_server_is_killed(self) -> None:
        with subprocess.Popen([sys.executable, "-c", SERVER, LOOP, "2"]) as server:  # noqa: ASYNC220
            try:
                pidfd = os.pidfd_open(await worker(server.pid))
            finally:
                server.kill()
        assert ends_within(pidfd, 15)
        os.close(pidfd)

    @pytest.mark.parametrize("code", ["print('x' * 10000)", "open('/x')", LOOP])
    def test_server_exits_cleanly_after_snippets(self, code: str) -> None:
        served = subprocess.run([sys.executable, "-c", SERVER, code, "0.1"], capture_output=True, timeout=30)
        assert (served.returncode, served.stdout) == (0, b"")


SERVER = """
import asyncio, sys
from bloxserver.blocks.base import BlockError
from bloxserver.blocks.python import block

async def main():
    config = block.config.model_construct(code=sys.argv[1], timeout_seconds=float(sys.argv[2]))
    try:
        await block.handler(block.payload(None), config, None)
    except BlockError:
        pass

asyncio.run(main())
"""
