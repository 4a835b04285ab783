"""A transient error of one item does not delay the others. A database outage ends the loop at once."""

from __future__ import annotations

import pytest

from bloxserver.engine.retry import process_each


class Recorder:
    """Fail with a transient error, fail permanently, or succeed, depending on the item."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    async def __call__(self, item: str) -> bool:
        self.tried.append(item)
        if item == "held":
            raise ConnectionError
        if item == "broken":
            raise ValueError
        return item == "done"


async def test_item_with_a_transient_error_is_skipped() -> None:
    work = Recorder()
    items = ["held", "done", "held", "held", "nothing", "held", "done"]
    assert await process_each(items, work) == 2
    assert work.tried == items


@pytest.mark.parametrize(
    ("items", "tried", "error"),
    [
        (["held", "held", "held", "done"], 3, ConnectionError),
        (["done", "broken", "done"], 2, ValueError),
    ],
)
async def test_error_that_affects_all_items_is_raised(items: list[str], tried: int, error: type[Exception]) -> None:
    work = Recorder()
    with pytest.raises(error):
        await process_each(items, work)
    assert len(work.tried) == tried
