"""Bodies of responses as JSON values."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from uuid import uuid4

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.http_bodies import MAX_BYTES_ON_LOOP, read_body, read_response
from bloxserver.clients.http import HttpResponse
from bloxserver.clients.memory import MemoryBudget, MemoryLimitReached
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.plans import FREE
from bloxserver.raw_json import text_of_value


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


def response(body: bytes, encoding: str = "gzip", max_bytes: int = 5_000_000) -> HttpResponse:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    return HttpResponse(200, headers, (), body, "http://example.com/", max_bytes)


class TestResponses:
    """The CPU time of `isolated` shows where a body was read: it is that of other processes."""

    @pytest.fixture
    def isolated(self) -> IsolatedTasks:
        return IsolatedTasks(uuid4(), FREE)

    @pytest.fixture
    def reading(self, context: BlockContext, isolated: IsolatedTasks) -> BlockContext:
        return replace(context, isolated=isolated)

    @pytest.mark.parametrize(
        ("size", "in_process"), [(MAX_BYTES_ON_LOOP - 2, True), (MAX_BYTES_ON_LOOP - 1, False), (1_000_000, False)]
    )
    async def test_small_body_is_read_in_process_by_its_decompressed_size(
        self, reading: BlockContext, isolated: IsolatedTasks, size: int, in_process: bool
    ) -> None:
        text = json.dumps("a" * size)
        value = await read_response(response(gzip.compress(text.encode())), reading)
        assert text_of_value(value) == text
        assert (isolated.cpu_seconds == 0) == in_process

    async def test_small_body_waits_for_the_turn_of_its_user(self, reading: BlockContext) -> None:
        turns: list[str] = []

        async def turn() -> None:
            turns.append("taken")

        await read_response(response(b"[]", ""), replace(reading, turn=turn))
        assert turns == ["taken"]

    @pytest.mark.parametrize(
        ("body", "encoding", "code"),
        [
            (gzip.compress(bytes(1_000_000), mtime=0), "gzip", "response_too_large"),
            (b"?", "br", "response_not_decodable"),
            (gzip.compress(b"[]", mtime=0)[:-4], "gzip", "invalid_response"),
        ],
        ids=["bomb", "unknown encoding", "incomplete"],
    )
    async def test_body_that_cannot_be_decompressed_is_an_error_of_another_process(
        self, reading: BlockContext, isolated: IsolatedTasks, body: bytes, encoding: str, code: str
    ) -> None:
        with pytest.raises(BlockError, match=r"the response of example\.com") as caught:
            await read_response(response(body, encoding, 999_999), reading)
        assert caught.value.code == code
        assert isolated.cpu_seconds > 0

    async def test_decompressed_body_is_charged(self, reading: BlockContext) -> None:
        budget = MemoryBudget(1_000_000, of="an execution")
        with pytest.raises(MemoryLimitReached, match="the memory limit of an execution"):
            await read_response(response(gzip.compress(b"9" * 1_000_001)), replace(reading, memory=budget))
