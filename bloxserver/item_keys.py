"""The items of loops in the keys of steps. The key of an item ends with its position in the list, like `:[17]`."""

from __future__ import annotations

import re

ITEM = re.compile(r":\[(\d{1,9})\]\Z")


def call_of_item(index: int) -> str:
    """Return the last part of an item's key."""
    return f"[{index}]"


def index_of_call(call: str | None) -> int | None:
    """Return the position of the item that a call is for; None if the call is not for an item."""
    return int(call[1:-1]) if call is not None and call.startswith("[") else None


def index_in_key(key: str | None) -> int | None:
    """Return the position of the item that a step handles; None for the step of another message."""
    found = None if key is None else ITEM.search(key)
    return None if found is None else int(found[1])
