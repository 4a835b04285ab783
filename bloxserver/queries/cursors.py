"""Opaque positions in lists: the time, or a number, and the id of the last row of a page, and a hash of the list.

A cursor grants nothing: the list is read for its owner in any case. The hash detects a cursor of another list.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from bloxserver.errors import BadRequest

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NUMBER_BYTES = 8
_ID_BYTES = 16
_HASH_BYTES = 8
MAX_CURSOR_LENGTH = 100


class Position(NamedTuple):
    """The place of a row in a list from the newest to the oldest row, with the id as tiebreak."""

    started_at: datetime
    id: UUID


def write_cursor(position: Position, list_name: str) -> str:
    """The cursor of a list. `list_name` identifies the list: its flow and its filters."""
    return write_number_cursor((position.started_at - _EPOCH) // _MICROSECOND, position.id, list_name)


def write_number_cursor(number: int, id: UUID, list_name: str) -> str:
    """The cursor of a list that is ordered by a number of 64 bits and the id."""
    content = number.to_bytes(_NUMBER_BYTES, signed=True) + id.bytes + _hash(list_name)
    return urlsafe_b64encode(content).decode()


def read_cursor(cursor: str, list_name: str) -> Position:
    """The position in a cursor. Raises `BadRequest` if it is malformed or belongs to another list."""
    microseconds, id = read_number_cursor(cursor, list_name)
    try:
        return Position(_EPOCH + microseconds * _MICROSECOND, id)
    except OverflowError:
        raise _invalid() from None


def read_number_cursor(cursor: str, list_name: str) -> tuple[int, UUID]:
    """The number and the id in a cursor. Raises `BadRequest` as `read_cursor` does."""
    if len(cursor) > MAX_CURSOR_LENGTH:
        raise _invalid()
    try:
        content = urlsafe_b64decode(cursor.encode("ascii"))
        number = int.from_bytes(content[:_NUMBER_BYTES], signed=True)
        id = UUID(bytes=content[_NUMBER_BYTES : _NUMBER_BYTES + _ID_BYTES])
    except ValueError:
        raise _invalid() from None
    if write_number_cursor(number, id, list_name) != cursor:
        raise _invalid()
    return number, id


def _invalid() -> BadRequest:
    return BadRequest("invalid_cursor", "The cursor is not one of this list with these filters")


def _hash(list_name: str) -> bytes:
    return blake2b(list_name.encode(), digest_size=_HASH_BYTES).digest()
