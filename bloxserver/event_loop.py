"""Work on many items in parts, so that the event loop runs other tasks between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

Items = TypeVar("Items", bound=Sequence[object])


async def in_parts(items: Items, size: int) -> AsyncIterator[Items]:
    """Yield slices of at most `size` items. Other tasks run between them."""
    for begin in range(0, len(items), size):
        if begin:
            await asyncio.sleep(0)
        yield items[begin : begin + size]  # type: ignore[misc]
