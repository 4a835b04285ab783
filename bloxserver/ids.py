"""Primary keys."""

from __future__ import annotations

import uuid

from uuid_utils import compat as uuid_utils


def new_id() -> uuid.UUID:
    """Return a new UUIDv7 (RFC 9562). It is ordered by time, so that new rows are adjacent in an index."""
    return uuid_utils.uuid7()
