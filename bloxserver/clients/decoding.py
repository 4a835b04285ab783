"""Reads response bodies and decompresses them, without ever holding more than the limit."""

from __future__ import annotations

import re
import zlib

import webencodings

GZIP = frozenset({"gzip", "x-gzip"})
DEFLATE = "deflate"
# Values of Content-Encoding that stand for no compression. Names of charsets are a common mistake, too.
UNCOMPRESSED = frozenset({"", "identity", "none", "binary", "7bit", "8bit", "aws-chunked"})
CODING = re.compile(r"[a-z0-9_-]{1,20}")
MAX_MEMBERS = 10_000
"""Members of a gzip body. Each costs time, even an empty one."""
GZIP_WINDOW = 31
ZLIB_WINDOW = 15
RAW_WINDOW = -15
HEADER_BYTES = 2


class ResponseTooLarge(Exception):
    """A body of more bytes than the limit."""


class ContentEncodingError(Exception):
    """A body that cannot be decoded as its Content-Encoding says. The message completes "the response of HOST …"."""


class BodyReader:
    """Collects the chunks of a body and decodes them as `encoding`, its Content-Encoding, says.

    `limit` is in bytes, and holds before and after decompression. Several compressions on top of each other are
    refused, since they would multiply the size.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._received_bytes = 0
        self._content = bytearray()
        self._codings = [coding for coding in re.split(r"[\s,]+", encoding.lower()) if not _is_uncompressed(coding)]
        self._decompressor: zlib._Decompress | None = None
        self._members = 0
        self._undecided = b""

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes of the body. Raises `ContentEncodingError`, `ResponseTooLarge`."""
        self._received_bytes += len(chunk)
        if self._received_bytes > self._limit:
            raise ResponseTooLarge
        if self._codings:
            self._decompress(chunk)
        else:
            self._content += chunk

    def finish(self) -> bytes:
        """The decoded body. Raises `ValueError` for a compressed one that ends too early."""
        if self._decompressor is not None or self._undecided:
            raise ValueError("the content ends too early")
        return bytes(self._content)

    def _decompress(self, data: bytes) -> None:
        """Decompress the members that begin, go on or end in `data`. Zero bytes may pad a member."""
        while data:
            if self._decompressor is None:
                if self._members:
                    data = data.lstrip(b"\0")
                data, self._undecided = self._undecided + data, b""
                if not data:
                    return
                self._check_next_member()
                if len(data) < HEADER_BYTES:
                    self._undecided = data
                    return
                self._decompressor = zlib.decompressobj(self._window(data))
            data = self._inflate(self._decompressor, data)

    def _inflate(self, decompressor: zlib._Decompress, data: bytes) -> bytes:
        """Decompress what belongs to the member, and return the rest."""
        try:
            self._content += decompressor.decompress(data, self._limit - len(self._content) + 1)
        except zlib.error:
            raise ContentEncodingError(f"is not {self._codings[0]}, as its Content-Encoding says") from None
        if len(self._content) > self._limit:
            raise ResponseTooLarge
        if decompressor.eof:
            self._decompressor = None
            self._members += 1
        return decompressor.unused_data

    def _check_next_member(self) -> None:
        """Raise `ContentEncodingError` where more data cannot be decoded."""
        [coding, *others] = self._codings
        if others:
            raise ContentEncodingError("is compressed more than once, which is not supported")
        if coding not in GZIP and coding != DEFLATE:
            name = f" {coding}" if CODING.fullmatch(coding) else ""
            raise ContentEncodingError(f"has the Content-Encoding{name}, which is not supported")
        if coding == DEFLATE and self._members:
            raise ContentEncodingError("goes on after the end of its deflate stream")
        if self._members == MAX_MEMBERS:
            raise ContentEncodingError(f"has more than {MAX_MEMBERS} gzip members")

    def _window(self, data: bytes) -> int:
        """The `wbits` for a member that begins with `data`."""
        if self._codings[0] in GZIP:
            return GZIP_WINDOW
        return ZLIB_WINDOW if _is_zlib_header(data) else RAW_WINDOW


def _is_uncompressed(coding: str) -> bool:
    return coding in UNCOMPRESSED or webencodings.lookup(coding) is not None


def _is_zlib_header(data: bytes) -> bool:
    """Whether a deflate stream begins with the header of RFC 1950; some servers send it without."""
    method, flags = data[0], data[1]
    return method & 0x0F == zlib.DEFLATED and method >> 4 <= 7 and (method * 256 + flags) % 31 == 0
