from __future__ import annotations

import asyncio
from datetime import timedelta

import uvloop

from bloxserver.clock import now
from bloxserver.engine.run.wake_timer import WakeTimer

HOUR = timedelta(hours=1)
SOON = timedelta(milliseconds=5)


async def test_earliest_requested_time_wakes_once() -> None:
    woken: asyncio.Queue[None] = asyncio.Queue()
    timer = WakeTimer(lambda: woken.put_nowait(None))
    for until in (now() + HOUR, now() + SOON, now() + HOUR):
        timer.wake_by(until)
    async with asyncio.timeout(10):
        await woken.get()
    assert woken.empty()
    timer.wake_by(now() - HOUR)
    async with asyncio.timeout(10):
        await woken.get()


async def test_cancelled_timer_does_not_wake() -> None:
    woken: list[str] = []
    timer = WakeTimer(lambda: woken.append("cancelled"))
    timer.wake_by(now())
    timer.cancel()
    timer.cancel()
    done = asyncio.Event()
    other = WakeTimer(done.set)
    other.wake_by(now() + SOON)
    async with asyncio.timeout(10):
        await done.wait()
    assert woken == []


def test_time_that_is_now_can_be_requested_again_on_uvloop() -> None:
    async def request() -> int:
        woken: asyncio.Queue[None] = asyncio.Queue()
        timer = WakeTimer(lambda: woken.put_nowait(None))
        timer.wake_by(now())
        timer.wake_by(now() + SOON)
        async with asyncio.timeout(10):
            await woken.get()
        return woken.qsize()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(request()) == 0
