"""Work on definitions that runs in a process of its own."""

from __future__ import annotations


def check_definition(request: bytes) -> bytes:
    """Not used yet."""
    return request
