"""Primary keys."""

from __future__ import annotations

import uuid

from uuid_utils import compat as uuid_utils

UUID_LENGTH = 36


def new_id() -> uuid.UUID:
    """Return a new UUIDv7 (RFC 9562). It is ordered by time, so that new rows are adjacent in an index."""
    return uuid_utils.uuid7()


def read_id(text: str) -> uuid.UUID | None:
    """Return the text as an id in its usual notation, with hyphens. Other notations that Python accepts are None."""
    if len(text) != UUID_LENGTH:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
