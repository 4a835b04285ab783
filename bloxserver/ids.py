"""Ids of rows."""

from __future__ import annotations

import uuid

from uuid_utils import compat as uuid_utils


def new_id() -> uuid.UUID:
    """A new id, ordered by time (UUIDv7, RFC 9562), so that the newest rows share the hot end of an index."""
    return uuid_utils.uuid7()
