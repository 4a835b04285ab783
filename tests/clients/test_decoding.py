"""Decompressing response bodies within a limit."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib

import pytest

from bloxserver.clients.decoding import MAX_MEMBERS, BodyReader, ContentEncodingError, ResponseTooLarge, decompress

LIMIT = 100_000
TEXT = "Grüße".encode() * 100
RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATE = RAW.compress(TEXT) + RAW.flush()
MEMBERS = gzip.compress(TEXT[:250], mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(TEXT[250:], mtime=0)


def read(encoding: str, body: bytes, chunk_bytes: int = 65_536, limit: int = LIMIT) -> bytes:
    reader = BodyReader(encoding, limit)
    for start in range(0, len(body), chunk_bytes):
        reader.feed(body[start : start + chunk_bytes])
    return reader.finish()


class TestBodies:
    @pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 65_536])
    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("", TEXT),
            *((name, TEXT) for name in ("identity", "Identity", "none", "binary", "8bit", "aws-chunked")),
            *((name, TEXT) for name in ("utf-8", "UTF8", "iso-8859-1", "us-ascii")),
            ("identity, utf-8", TEXT),
            ("gzip", gzip.compress(TEXT, mtime=0)),
            ("X-GZIP", gzip.compress(TEXT, mtime=0)),
            ("aws-chunked,gzip", gzip.compress(TEXT, mtime=0)),
            ("gzip , identity", gzip.compress(TEXT, mtime=0)),
            ("gzip", MEMBERS),
            ("gzip", gzip.compress(TEXT, mtime=0) + bytes(100)),
            ("gzip", bytes(512).join([gzip.compress(TEXT[:99], mtime=0), gzip.compress(TEXT[99:], mtime=0), b""])),
            ("deflate", zlib.compress(TEXT)),
            ("deflate", zlib.compress(TEXT, 0)),
            ("deflate", zlib.compress(TEXT, 9)),
            ("deflate", zlib.compress(TEXT) + bytes(3)),
            ("deflate", RAW_DEFLATE),
        ],
        ids=lambda value: ascii(value)[:12],
    )
    def test_body_is_decoded(self, encoding: str, body: bytes, chunk_bytes: int) -> None:
        assert read(encoding, body, chunk_bytes) == TEXT

    @pytest.mark.parametrize("encoding", ["", "gzip", "deflate", "br", "gzip, gzip"])
    def test_body_without_bytes_is_empty(self, encoding: str) -> None:
        assert read(encoding, b"") == b""

    def test_large_body_is_decoded(self) -> None:
        """In pieces, with members that end in the middle of a piece."""
        parts = [os.urandom(size) for size in (70_000, 0, 1, 200_000)]
        body = b"".join(gzip.compress(part, mtime=0) for part in parts)
        assert decompress(body, "gzip", 1_000_000) == b"".join(parts)
        assert decompress(body, "", 1_000_000) == body


class TestErrors:
    @pytest.mark.parametrize("chunk_bytes", [1, 65_536])
    @pytest.mark.parametrize(
        ("encoding", "body", "told"),
        [
            ("gzip", TEXT, "is not gzip as declared by its Content-Encoding"),
            ("gzip", zlib.compress(TEXT), "is not gzip as declared by its Content-Encoding"),
            ("gzip", gzip.compress(TEXT, mtime=0) + b"junk", "is not gzip as declared by its Content-Encoding"),
            ("gzip", gzip.compress(TEXT, mtime=0)[:-8] + bytes(8), "is not gzip as declared by its Content-Encoding"),
            ("gzip", bytes(10) + gzip.compress(TEXT, mtime=0), "is not gzip as declared by its Content-Encoding"),
            ("deflate", b"\x07" * 10, "is not deflate as declared by its Content-Encoding"),
            ("deflate", zlib.compress(TEXT) * 2, "has data after the end of its deflate stream"),
            ("br", TEXT, "has the Content-Encoding br, which is not supported"),
            ("identity, zstd", TEXT, "has the Content-Encoding zstd, which is not supported"),
            ("\x01 secret" * 9, TEXT, "is compressed more than once, which is not supported"),
            ("(secret)", TEXT, "has the Content-Encoding, which is not supported"),
            (
                "gzip, gzip",
                gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0),
                "is compressed more than once, which is not supported",
            ),
            ("deflate, gzip", TEXT, "is compressed more than once, which is not supported"),
            ("gzip", gzip.compress(b"", mtime=0) * (MAX_MEMBERS + 1), f"has more than {MAX_MEMBERS} gzip members"),
        ],
        ids=lambda value: ascii(value)[:12],
    )
    def test_error_names_the_encoding(self, encoding: str, body: bytes, told: str, chunk_bytes: int) -> None:
        with pytest.raises(ContentEncodingError) as caught:
            read(encoding, body, chunk_bytes, limit=1_000_000)
        assert str(caught.value) == told

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    @pytest.mark.parametrize("kept", [1, 2, 9, -9, -1])
    def test_incomplete_body_is_a_value_error(self, encoding: str, kept: int) -> None:
        body = gzip.compress(TEXT, mtime=0) if encoding == "gzip" else zlib.compress(TEXT)
        with pytest.raises(ValueError, match="the content is incomplete"):
            read(encoding, body[:kept])


class TestLimit:
    @pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
    def test_body_of_exactly_the_limit_is_accepted(self, encoding: str) -> None:
        for size in (LIMIT, LIMIT + 1):
            body = {"": bytes(size), "gzip": gzip.compress(bytes(size)), "deflate": zlib.compress(bytes(size))}[
                encoding
            ]
            if size == LIMIT:
                assert read(encoding, body) == bytes(size)
            else:
                with pytest.raises(ResponseTooLarge):
                    read(encoding, body)

    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", gzip.compress(bytes(20_000_000))),
            ("gzip", gzip.compress(bytes(50_000)) * 200),
            ("deflate", zlib.compress(bytes(20_000_000))),
            ("gzip", gzip.compress(b"", mtime=0) + bytes(LIMIT)),
        ],
        ids=["one member", "many members", "deflate", "padding"],
    )
    def test_limit_applies_to_compressed_bodies(self, encoding: str, body: bytes) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(ResponseTooLarge):
                read(encoding, body)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
