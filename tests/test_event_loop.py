from __future__ import annotations

import asyncio

from bloxserver.event_loop import in_parts


async def test_items_come_in_parts_and_other_tasks_run_between_them() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert [(part, turns) async for part in in_parts("abcde", 2)] == [("ab", 0), ("cd", 1), ("e", 2)]
    counting.cancel()


async def test_no_items_have_no_parts() -> None:
    assert [part async for part in in_parts((), 2)] == []
