"""Reading a response body without ever holding more of it than the limit, however well it was packed."""

from __future__ import annotations

import zlib

GZIP = ("gzip", "x-gzip")


class ResponseTooLarge(Exception):
    """A body of more bytes than the limit."""


class BodyReader:
    """Collects the chunks of a body and unpacks them. `limit` is in bytes, packed and unpacked.

    Raises `ValueError` for a body that cannot be unpacked, `ResponseTooLarge`.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._packed_bytes = 0
        self._content = bytearray()
        # Several layers are refused as well: unpacked one after the other they would multiply the size.
        self._encoding = encoding.lower() or "identity"
        self._unpacker = zlib.decompressobj(wbits=31)

    def feed(self, chunk: bytes) -> None:
        self._packed_bytes += len(chunk)
        if self._packed_bytes > self._limit:
            raise ResponseTooLarge
        self._content += self._unpacked(chunk)
        if len(self._content) > self._limit:
            raise ResponseTooLarge

    def finish(self) -> bytes:
        if self._encoding in GZIP and self._packed_bytes and not self._unpacker.eof:
            raise ValueError("content ends too early")
        return bytes(self._content)

    def _unpacked(self, chunk: bytes) -> bytes:
        if self._encoding == "identity":
            return chunk
        if self._encoding not in GZIP:
            raise ValueError("unknown content encoding")
        try:
            unpacked = self._unpacker.decompress(chunk, self._limit - len(self._content) + 1)
        except zlib.error:
            raise ValueError("content is not gzip") from None
        if self._unpacker.unused_data:
            raise ValueError("content goes on after its end")
        return unpacked
