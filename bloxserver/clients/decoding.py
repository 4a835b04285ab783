"""Decompresses response bodies up to a size limit."""

from __future__ import annotations

import re
import zlib

import webencodings

GZIP = frozenset({"gzip", "x-gzip"})
DEFLATE = "deflate"
# Values of Content-Encoding that mean no compression. Some servers send the name of a charset by mistake.
UNCOMPRESSED = frozenset({"", "identity", "none", "binary", "7bit", "8bit", "aws-chunked"})
CODING = re.compile(r"[a-z0-9_-]{1,20}")
MAX_MEMBERS = 10_000
"""Maximum members of a gzip body. Even an empty member takes time."""
PIECE_BYTES = 64 * 1024
"""The end of each member copies the rest of the piece."""
GZIP_WINDOW = 31
ZLIB_WINDOW = 15
RAW_WINDOW = -15
HEADER_BYTES = 2


class ResponseTooLarge(Exception):
    """The body is larger than the limit."""


class ContentEncodingError(Exception):
    """The body cannot be decoded. The message completes the sentence "the response of HOST …"."""


def decompress(content: bytes, encoding: str, limit: int) -> bytes:
    """Return the body that `content` is with this Content-Encoding, at most `limit` bytes.

    Takes time in proportion to `limit` and the size of `content`. Raises `ContentEncodingError`, `ResponseTooLarge`,
    and `ValueError` if the body is incomplete.
    """
    reader = BodyReader(encoding, limit)
    for start in range(0, len(content), PIECE_BYTES):
        reader.feed(content[start : start + PIECE_BYTES])
    return reader.finish()


class BodyReader:
    """Collects the chunks of a body and decodes them according to `encoding`, its Content-Encoding.

    `limit` is in bytes and applies before and after decompression. Nested compression is rejected, because it
    multiplies the size.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._received_bytes = 0
        self._content = bytearray()
        self._codings = [coding for coding in re.split(r"[\s,]+", encoding.lower()) if not _is_uncompressed(coding)]
        self._decompressor: zlib._Decompress | None = None
        self._members = 0
        self._pending = b""

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
        """Return the decoded body. Raises `ValueError` if a compressed body is incomplete."""
        if self._decompressor is not None or self._pending:
            raise ValueError("the content is incomplete")
        return bytes(self._content)

    def _decompress(self, data: bytes) -> None:
        """Decompress the members in `data`. A member may be followed by zero bytes as padding."""
        while data:
            if self._decompressor is None:
                if self._members:
                    data = data.lstrip(b"\0")
                data, self._pending = self._pending + data, b""
                if not data:
                    return
                self._check_next_member()
                if len(data) < HEADER_BYTES:
                    self._pending = data
                    return
                self._decompressor = zlib.decompressobj(self._window(data))
            data = self._inflate(self._decompressor, data)

    def _inflate(self, decompressor: zlib._Decompress, data: bytes) -> bytes:
        """Decompress the current member, and return the bytes after its end."""
        try:
            self._content += decompressor.decompress(data, self._limit - len(self._content) + 1)
        except zlib.error:
            raise ContentEncodingError(f"is not {self._codings[0]} as declared by its Content-Encoding") from None
        if len(self._content) > self._limit:
            raise ResponseTooLarge
        if decompressor.eof:
            self._decompressor = None
            self._members += 1
        return decompressor.unused_data

    def _check_next_member(self) -> None:
        """Raise `ContentEncodingError` if a further member cannot be decoded."""
        [coding, *others] = self._codings
        if others:
            raise ContentEncodingError("is compressed more than once, which is not supported")
        if coding not in GZIP and coding != DEFLATE:
            name = f" {coding}" if CODING.fullmatch(coding) else ""
            raise ContentEncodingError(f"has the Content-Encoding{name}, which is not supported")
        if coding == DEFLATE and self._members:
            raise ContentEncodingError("has data after the end of its deflate stream")
        if self._members == MAX_MEMBERS:
            raise ContentEncodingError(f"has more than {MAX_MEMBERS} gzip members")

    def _window(self, data: bytes) -> int:
        """Return zlib's `wbits` for a member that starts with `data`."""
        if self._codings[0] in GZIP:
            return GZIP_WINDOW
        return ZLIB_WINDOW if _is_zlib_header(data) else RAW_WINDOW


def _is_uncompressed(coding: str) -> bool:
    return coding in UNCOMPRESSED or webencodings.lookup(coding) is not None


def _is_zlib_header(data: bytes) -> bool:
    """Whether a deflate stream starts with the header of RFC 1950, which some servers omit."""
    method, flags = data[0], data[1]
    return method & 0x0F == zlib.DEFLATED and method >> 4 <= 7 and (method * 256 + flags) % 31 == 0
