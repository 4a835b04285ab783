"""Several byte strings as one request or response."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_NUMBER = struct.Struct("!I")


def join_parts(parts: Sequence[bytes]) -> bytes:
    """Return one byte string, from which `split_parts` returns the parts."""
    lengths = b"".join(_NUMBER.pack(len(part)) for part in parts)
    return b"".join([_NUMBER.pack(len(parts)), lengths, *parts])


def split_parts(joined: bytes) -> list[bytes]:
    (count,) = _NUMBER.unpack_from(joined)
    position = _NUMBER.size * (1 + count)
    parts: list[bytes] = []
    for index in range(count):
        (length,) = _NUMBER.unpack_from(joined, _NUMBER.size * (1 + index))
        parts.append(joined[position : position + length])
        position += length
    return parts
