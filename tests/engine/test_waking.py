"""Loops of the engine go on, whatever ends them."""

from __future__ import annotations

import asyncio

import pytest

from bloxserver.engine.waking import keep_running


class Panic(BaseException):
    """As extensions in Rust raise it."""


async def test_a_loop_is_begun_anew_whatever_ended_it_until_it_is_cancelled() -> None:
    ends: list[BaseException | None] = [Panic(), asyncio.CancelledError(), ValueError(), None]
    goes_on = asyncio.Event()

    async def loop() -> None:
        if not ends:
            goes_on.set()
            await asyncio.Event().wait()
        if (end := ends.pop(0)) is not None:
            raise end

    task = asyncio.create_task(keep_running(loop))
    async with asyncio.timeout(20):
        await goes_on.wait()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
