"""Loops of the engine are restarted after errors."""

from __future__ import annotations

import asyncio

import pytest

from bloxserver.engine.loops import cancel, run_forever


class Panic(BaseException):
    """A `BaseException`, as panics of Rust extensions raise it."""


async def test_loop_is_restarted_after_any_error_until_cancelled() -> None:
    ends: list[BaseException | None] = [Panic(), asyncio.CancelledError(), ValueError(), None]
    goes_on = asyncio.Event()

    async def loop() -> None:
        if not ends:
            goes_on.set()
            await asyncio.Event().wait()
        if (end := ends.pop(0)) is not None:
            raise end

    task = asyncio.create_task(run_forever(loop, again_seconds=0.01))
    async with asyncio.timeout(20):
        await goes_on.wait()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_raises_on_cancellation_ends() -> None:
    begun = asyncio.Event()
    caught: list[BaseException] = []

    async def swallow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            caught.append(error)
        await asyncio.Event().wait()

    task = asyncio.create_task(swallow())
    await begun.wait()
    async with asyncio.timeout(20):
        await cancel([task], again_seconds=0.01)
    assert (len(caught), task.cancelled()) == (1, True)
