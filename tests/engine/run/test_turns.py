"""Turns of tenants on the event loop."""

from __future__ import annotations

import asyncio

from bloxserver.engine.run.turns import STEPS_PER_TURN, Turns


async def test_tenant_with_many_steps_does_not_delay_another() -> None:
    turns, begun = Turns(), list[str]()

    async def step(tenant: str) -> None:
        await turns.take(tenant)
        begun.append(tenant)

    many = [asyncio.create_task(step("many")) for _ in range(100)]
    await asyncio.sleep(0)
    one = asyncio.create_task(step("one"))
    await one
    assert begun.count("many") <= 4 * STEPS_PER_TURN
    await asyncio.gather(*many)
    assert begun.count("many") == 100


async def test_steps_of_a_tenant_begin_in_order_and_cancelled_ones_are_skipped() -> None:
    turns, begun = Turns(), list[int]()

    async def step(number: int) -> None:
        await turns.take("tenant")
        begun.append(number)

    steps = [asyncio.create_task(step(number)) for number in range(10)]
    await asyncio.sleep(0)
    for number in (3, 4, 5, 9):
        steps[number].cancel()
    await asyncio.gather(*steps, return_exceptions=True)
    assert begun == [0, 1, 2, 6, 7, 8]
    await step(10)
    assert begun[-1] == 10
