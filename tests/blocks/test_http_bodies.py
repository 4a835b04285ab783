"""Bodies of responses as JSON values."""

from __future__ import annotations

import json

import pytest
from pydantic import JsonValue

from bloxserver.blocks.http_bodies import read_body


@pytest.mark.parametrize(
    ("content_type", "sent", "value"),
    [
        ("application/json", b'{"a":[1,null]}', {"a": [1, None]}),
        ("application/json", b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
        ("application/problem+json; charset=utf-8", b"[]", []),
        ("Application/JSON", b'"text"', "text"),
        ("application/json", b'\xef\xbb\xbf{"a":"\xc3\xa9"}', {"a": "é"}),
        ("application/json", '{"a":"é"}'.encode("utf-16"), {"a": "é"}),
        ("application/ld+json", b"\xfe\xff" + "[1]".encode("utf-16-be"), [1]),
        ("application/json; charset=iso-8859-1", b'"\xe9"', "é"),
        ("application/json; charset=utf-16le", '"é"'.encode("utf-16-le"), "é"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_json_body_becomes_its_value(content_type: str, sent: bytes, value: JsonValue) -> None:
    assert read_body(sent, content_type) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "{broken", "NaN", "[1e400]", "[" * 50_000, "9" * 5000),
        *('["\\u0000"]', '{"\\u0000":1}', '"\\ud800"', "[" * 66 + "]" * 66),
    ],
    ids=lambda text: text[:10],
)
def test_invalid_json_and_json_that_cannot_be_stored_become_text(text: str) -> None:
    assert read_body(text.encode(), "application/json") == text


@pytest.mark.parametrize(
    ("content_type", "sent", "text"),
    [
        ("text/html", b'{"a":1}', '{"a":1}'),
        ("text/plain", "é日".encode(), "é日"),
        ("text/html; charset=ISO-8859-1", b"Gr\xfc\xdfe \x80", "Grüße €"),
        ("application/xml; charset=iso-8859-15", b"<a>\xa4</a>", "<a>€</a>"),
        ("text/csv;charset=gbk", "中文".encode("gbk"), "中文"),
        ("text/csv; charset=utf-8", b"a\xffb", "a\ufffdb"),
        ("text/csv; charset=unknown", "é".encode(), "é"),
        ("text/csv", "é".encode("utf-8-sig"), "é"),
        *((content_type, "é".encode("utf-16"), "é") for content_type in ("text/csv", "")),
        # Some servers declare a charset for every type.
        ("application/vnd.x; charset=iso-8859-1", b"Gr\xfc\xdfe\n", "Grüße\n"),
        ("application/octet-stream; charset=gbk", "é".encode(), "é"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_text_body_is_decoded(content_type: str, sent: bytes, text: str) -> None:
    assert read_body(sent, content_type) == text


@pytest.mark.parametrize(
    ("content_type", "sent", "url"),
    [
        ("image/png", b"\x89PNG", "image/png;base64,iVBORw=="),
        *((content_type, b"\xff", "application/octet-stream;base64,/w==") for content_type in ("", "text/html, x,y")),
        ("text/plain", b"\xff", "text/plain;base64,/w=="),
        ("application/json", b'"\xe9"', "application/json;base64,Iuki"),
        *((f"text/plain{end}", b"a\0b", "text/plain;base64,YQBi") for end in ("", "; charset=windows-1252")),
        # Some servers declare a charset for every type.
        ("application/pdf; charset=utf-8", b"%PDF\xff", "application/pdf;base64,JVBERv8="),
        ("image/x; charset=iso-8859-1", b"\x89\x01", "image/x;base64,iQE="),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_binary_body_becomes_a_data_url(content_type: str, sent: bytes, url: str) -> None:
    assert read_body(sent, content_type) == f"data:{url}"
