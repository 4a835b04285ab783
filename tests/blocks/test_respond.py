"""`respond`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.respond import MAX_BODY_BYTES, MAX_HEADERS, block
from bloxserver.queries.webhook_responses import RESPOND


async def response(context: BlockContext, config: dict[str, Any], payload: JsonValue) -> Any:
    return await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)


def test_queries_know_the_name_of_the_block() -> None:
    assert block.name == RESPOND


JSON, TEXT = {"content-type": "application/json"}, {"content-type": "text/plain; charset=utf-8"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"status": 200, "headers": JSON, "body": '{"n":7,"t":"é"}'}),
        ({"body": "{{ payload.t }}", "status": 404}, {"status": 404, "headers": TEXT, "body": "é"}),
        ({"body": ["{{ payload.n }}"]}, {"status": 200, "headers": JSON, "body": "[7]"}),
        ({"body": None}, {"status": 200, "headers": JSON, "body": "null"}),
        ({"status": "{{ payload.n * 1.0 + 200.0 }}"}, {"status": 207, "headers": JSON, "body": '{"n":7,"t":"é"}'}),
        ({"status": 204, "body": "x"}, {"status": 204, "headers": {}, "body": ""}),
        (
            {"headers": {"X-N": "{{ payload.n }}", "Content-TYPE": "text/csv"}, "body": "a,b"},
            {"status": 200, "headers": {"x-n": "7", "content-type": "text/csv"}, "body": "a,b"},
        ),
        (
            {"redirect": "https://example.com/?n={{ payload.n }}"},
            {"status": 303, "headers": {"location": "https://example.com/?n=7"}, "body": ""},
        ),
        (
            {"redirect": "http://example.com", "status": 308, "headers": {"x-n": "1"}},
            {"status": 308, "headers": {"x-n": "1", "location": "http://example.com"}, "body": ""},
        ),
    ],
)
async def test_answer_is_the_response(context: BlockContext, config: dict[str, Any], expected: JsonValue) -> None:
    assert await response(context, config, {"n": 7, "t": "é"}) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"status": "{{ payload.n }}"},
        {"status": "{{ payload.text }}"},
        {"status": "{{ payload.yes }}"},
        {"status": "2{{ payload.n }}"},
        {"status": "{{ payload.ok }}", "redirect": "https://example.com"},
        {"headers": {"x-a": "{{ payload.text }}"}},
        {"headers": {"x-a": "é"}},
        {"headers": {"x-a": "{{ payload.long }}"}},
        {"body": "{{ payload.large }}"},
        *(
            {"redirect": "{{ payload." + name + " }}"}
            for name in ("script", "relative", "scheme", "spaces", "text", "long", "backslash", "broken")
        ),
    ],
)
async def test_invalid_response_is_an_error(context: BlockContext, config: dict[str, Any]) -> None:
    payload: dict[str, JsonValue] = {
        "n": 17,
        "ok": 200,
        "yes": True,
        "text": "a\r\nSet-Cookie: b=c",
        "long": "https://example.com/" + "x" * 5_000,
        "large": "x" * (MAX_BODY_BYTES + 1),
        "script": "javascript:alert(1)",
        "relative": "/path",
        "scheme": "//example.com",
        "spaces": "https://example.com/a b",
        "backslash": "https://example.com\\@other.example",
        "broken": "https://[",
    }
    with pytest.raises(BlockError) as caught:
        await response(context, config, payload)
    large = "large" in str(config)
    assert caught.value.code in (("template_too_large", "invalid_response") if large else ("invalid_response",))
    assert not caught.value.retryable


async def test_message_is_limited_too(context: BlockContext) -> None:
    with pytest.raises(BlockError, match="the body must have at most"):
        await response(context, {}, "é" * (MAX_BODY_BYTES // 2 + 1))


@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Location",
        "Content-Encoding",
        "Content-Security-Policy",
        "Access-Control-Allow-Origin",
        "Clear-Site-Data",
        "Refresh",
        "WWW-Authenticate",
        "X-Accel-Redirect",
        "X-Sendfile",
        "X-Content-Type-Options",
        "X-Frame-Options",
        "X-Request-Id",
        "X-a b",
        "X-{{ payload.n }}",
        "",
    ],
)
def test_header_that_could_harm_is_rejected(name: str) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate({"headers": {name: "x"}})


@pytest.mark.parametrize(
    "config",
    [
        {"status": 199},
        {"status": 600},
        {"status": "200"},
        {"status": True},
        {"status": 200, "redirect": "https://example.com"},
        {"body": 1, "redirect": "https://example.com"},
        {"headers": {"x-a": "1", "X-A": "2"}},
        {"headers": {f"x-{number}": "1" for number in range(MAX_HEADERS + 1)}},
        {"body": "{{ payload."},
        {"redirect": "{{ secrets.URL }}"},
    ],
)
def test_invalid_config(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
