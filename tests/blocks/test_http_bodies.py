"""Bodies of responses as JSON values."""

from __future__ import annotations

import json

import pytest
from pydantic import JsonValue

from bloxserver.blocks.http_bodies import read_body


@pytest.mark.parametrize(
    ("content_type", "sent", "body"),
    [
        ("application/json", b'{"a":[1,null]}', {"a": [1, None]}),
        ("application/problem+json; charset=utf-8", b"[]", []),
        ("Application/JSON", b'"text"', "text"),
        ("application/json", b"", ""),
        ("application/json", b"{broken", "{broken"),
        ("application/json", b"NaN", "NaN"),
        ("application/json", b"[1e400]", "[1e400]"),
        ("application/json", b'["\\u0000"]', '["\\u0000"]'),
        ("application/json", b'{"\\u0000":1}', '{"\\u0000":1}'),
        ("application/json", b'"\\ud800"', '"\\ud800"'),
        ("application/json", b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
        ("application/json", b"[" * 66 + b"]" * 66, "[" * 66 + "]" * 66),
        ("application/json", b"[" * 50_000, "[" * 50_000),
        ("application/json", b"9" * 5000, "9" * 5000),
        ("text/html", b'{"a":1}', '{"a":1}'),
        ("text/plain", "é日".encode(), "é日"),
        ("image/png", b"\x89PNG", "data:image/png;base64,iVBORw=="),
        ("text/plain", b"a\0b", "data:text/plain;base64,YQBi"),
        ("", b"\xff", "data:application/octet-stream;base64,/w=="),
        ("text/html, x,y", b"\xff", "data:application/octet-stream;base64,/w=="),
        ("text/plain", b"\xff", "data:text/plain;base64,/w=="),
        ("text/html; charset=ISO-8859-1", b"Gr\xfc\xdfe \x80", "Grüße €"),
        ("application/xml; charset=iso-8859-15", b"<a>\xa4</a>", "<a>€</a>"),
        ("text/csv;charset=gbk", "中文".encode("gbk"), "中文"),
        ("text/csv; charset=utf-8", b"a\xffb", "a\ufffdb"),
        ("text/csv; charset=unknown", "é".encode(), "é"),
        ("text/csv", "é".encode("utf-8-sig"), "é"),
        ("text/csv", "é".encode("utf-16"), "é"),
        ("", "é".encode("utf-16"), "é"),
        ("text/plain; charset=windows-1252", b"a\0b", "data:text/plain;base64,YQBi"),
        ("application/json", b'\xef\xbb\xbf{"a":"\xc3\xa9"}', {"a": "é"}),
        ("application/json", '{"a":"é"}'.encode("utf-16"), {"a": "é"}),
        ("application/ld+json", b"\xfe\xff" + "[1]".encode("utf-16-be"), [1]),
        ("application/json; charset=iso-8859-1", b'"\xe9"', "é"),
        ("application/json; charset=utf-16le", '"é"'.encode("utf-16-le"), "é"),
        ("application/json", b'"\xe9"', "data:application/json;base64,Iuki"),
        # Some servers declare a charset for every type.
        ("application/pdf; charset=utf-8", b"%PDF\xff", "data:application/pdf;base64,JVBERv8="),
        ("image/x; charset=iso-8859-1", b"\x89\x01", "data:image/x;base64,iQE="),
        ("application/vnd.x; charset=iso-8859-1", b"Gr\xfc\xdfe\n", "Grüße\n"),
        ("application/octet-stream; charset=gbk", "é".encode(), "é"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_body_becomes_json_text_or_data_url(content_type: str, sent: bytes, body: JsonValue) -> None:
    assert read_body(sent, content_type) == body
