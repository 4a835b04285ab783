"""Ends of calls are written in groups, in their order, and again after transient errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bloxserver.llm import settlements
from bloxserver.llm.settlements import GroupWriter


class Written:
    """What was written, and errors of the next writes."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.errors: list[Exception] = []
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def write(self, items: Sequence[int]) -> None:
        await self.may_write.wait()
        if self.errors:
            raise self.errors.pop()
        self.groups.append(list(items))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    monkeypatch.setattr(settlements, "LINGER_SECONDS", 3_600)
    monkeypatch.setattr(settlements, "RETRY_SECONDS", 0)
    monkeypatch.setattr(settlements, "FLUSH_SECONDS", 30)
    return Written()


async def turns() -> None:
    """Let other tasks run until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_items_wait_for_others_until_one_is_due_at_once(written: Written) -> None:
    writer = GroupWriter(written.write)
    writer.put(1)
    writer.put(2)
    await turns()
    assert (written.groups, writer.is_idle) == ([], False)
    writer.put(3, at_once=True)
    await turns()
    assert (written.groups, writer.is_idle) == ([[1, 2, 3]], True)


async def test_item_is_written_without_others(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlements, "LINGER_SECONDS", 0)
    writer = GroupWriter(written.write)
    writer.put(1)
    await turns()
    assert written.groups == [[1]]


async def test_flush_waits_only_for_the_items_before_it(written: Written) -> None:
    writer = GroupWriter(written.write)
    written.may_write.clear()
    writer.put(1)
    flushing = asyncio.create_task(writer.flush())
    await turns()
    writer.put(2)
    await turns()
    assert not flushing.done()
    written.may_write.set()
    await flushing
    assert (written.groups, writer.is_idle) == ([[1]], False)
    await writer.flush()
    assert written.groups == [[1], [2]]


async def test_items_stay_in_order_and_are_written_again_after_a_transient_error(written: Written) -> None:
    writer = GroupWriter(written.write, lambda error: isinstance(error, OSError))
    written.errors = [OSError(), OSError()]
    written.may_write.clear()
    writer.put(1, at_once=True)
    await turns()
    writer.put(2, at_once=True)
    written.may_write.set()
    await writer.flush()
    assert written.groups == [[1], [2]]
    written.errors = [ValueError()]  # not transient: the group is lost, and later ones are not
    writer.put(3)
    await writer.flush()
    writer.put(4)
    await writer.flush()
    assert written.groups == [[1], [2], [4]]


async def test_groups_are_bounded(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlements, "MAX_GROUP", 3)
    monkeypatch.setattr(settlements, "MAX_WAITING", 7)
    writer = GroupWriter(written.write)
    for item in range(9):
        writer.put(item)
    await turns()
    assert written.groups == [[2, 3, 4], [5, 6, 7], [8]]
