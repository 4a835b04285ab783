"""`http.request` against a real server."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.http_request import block
from tests.blocks.conftest import NOW
from tests.clients.loopback import LoopbackServer, answer

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "Application/X-WWW-Form-Urlencoded; charset=utf-8"}
BODY_METHODS = ("POST", "PUT", "PATCH")


async def run(context: BlockContext, payload: JsonValue, **config: Any) -> Any:
    return await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)


async def failure(context: BlockContext, payload: JsonValue, **config: Any) -> BlockError:
    with pytest.raises(BlockError) as caught:
        await run(context, payload, **config)
    return caught.value


class TestRequest:
    """The request."""

    async def test_payload_describes_the_request(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/a"] = answer(b"ok")
        payload: JsonValue = {
            "url": server.url("/a"),
            "method": "put",
            "headers": {"X-One": "1"},
            "body": {"é": [1]},
            "note": 1,
        }
        await run(context, payload)
        [request] = server.received
        assert (request.method, request.path, json.loads(request.body)) == ("PUT", "/a", {"é": [1]})
        assert (request.headers["x-one"], request.headers["content-type"]) == ("1", "application/json")

    async def test_config_takes_precedence_over_the_payload(
        self, context: BlockContext, server: LoopbackServer
    ) -> None:
        server.answers["/a"] = answer()
        payload: JsonValue = {
            "url": server.url("/a"),
            "method": "DELETE",
            "headers": {"x-one": "1", "X-Two": "2"},
            "body": "theirs",
        }
        await run(context, payload, method="POST", headers={"X-One": "config"}, body="ours")
        [request] = server.received
        assert (request.method, request.body) == ("POST", b"ours")
        assert (request.headers["x-one"], request.headers["x-two"]) == ("config", "2")

    @pytest.mark.parametrize("method", BODY_METHODS)
    async def test_payload_is_the_body_if_the_config_has_a_url(
        self, context: BlockContext, server: LoopbackServer, method: str
    ) -> None:
        server.answers["/a"] = answer()
        payload: JsonValue = {"url": "http://10.0.0.1/", "method": "GET"}
        await run(context, payload, url=server.url("/a"), method=method)
        await run(context, payload, url=server.url("/a"), method=method, body=[1])
        assert [request.method for request in server.received] == [method] * 2
        assert [json.loads(request.body) for request in server.received] == [payload, [1]]

    @pytest.mark.parametrize("method", [None, "GET", "DELETE"])
    async def test_methods_without_body_do_not_send_the_payload(
        self, context: BlockContext, server: LoopbackServer, method: str | None
    ) -> None:
        server.answers["/a"] = answer()
        await run(context, {"any": "thing"}, url=server.url("/a"), method=method)
        [request] = server.received
        assert (request.method, request.body) == (method or "GET", b"")

    @pytest.mark.parametrize(
        ("body", "headers", "sent", "content_type"),
        [
            ("text é", {}, "text é".encode(), "text/plain; charset=utf-8"),
            ("<x/>", {"content-type": "text/xml"}, b"<x/>", "text/xml"),
            ({"a": 1}, {}, b'{"a":1}', "application/json"),
            ([1], {"Content-Type": "application/vnd.api+json"}, b"[1]", "application/vnd.api+json"),
            (False, {}, b"false", "application/json"),
            (0, {}, b"0", "application/json"),
            ("", {}, b"", "text/plain; charset=utf-8"),
            (None, {}, b"", None),
        ],
        ids=repr,
    )
    async def test_body_is_sent_with_its_content_type(
        self,
        context: BlockContext,
        server: LoopbackServer,
        body: JsonValue,
        headers: dict[str, str],
        sent: bytes,
        content_type: str | None,
    ) -> None:
        server.answers["/"] = answer()
        await run(context, {"url": server.url("/"), "method": "POST", "headers": {**headers}, "body": body})
        [request] = server.received
        assert (request.body, request.headers.get("content-type")) == (sent, content_type)
        assert request.headers["content-length"] == str(len(sent))

    @pytest.mark.parametrize("method", BODY_METHODS)
    async def test_null_body_in_the_config_sends_no_body(
        self, context: BlockContext, server: LoopbackServer, method: str
    ) -> None:
        server.answers["/"] = answer()
        await run(context, {"any": "thing"}, url=server.url("/"), method=method, body=None)
        await run(context, {"url": server.url("/"), "method": method, "body": "theirs"}, body=None)
        for request in server.received:
            assert (request.method, request.body, request.headers["content-length"]) == (method, b"", "0")
            assert "content-type" not in request.headers

    @pytest.mark.parametrize(
        ("value", "sent"),
        [
            (7, "7"),
            (1.5, "1.5"),
            (2.0, "2.0"),
            (True, "true"),
            (False, "false"),
            ("", ""),
            (None, None),
            (-(2**63), str(-(2**63))),
        ],
    )
    async def test_header_numbers_and_booleans_become_text_and_null_is_removed(
        self, context: BlockContext, server: LoopbackServer, value: JsonValue, sent: str | None
    ) -> None:
        server.answers["/"] = answer()
        await run(context, {"url": server.url("/"), "headers": {"X-A": value}})
        await run(context, {"url": server.url("/"), "headers": {"X-A": "theirs"}}, headers={"x-b": value})
        assert server.received[0].headers.get("x-a") == sent
        assert (server.received[1].headers["x-a"], server.received[1].headers.get("x-b")) == ("theirs", sent)

    @pytest.mark.parametrize("body", ["a=1&b=%20", "", None])
    async def test_form_body_as_text_is_sent(
        self, context: BlockContext, server: LoopbackServer, body: str | None
    ) -> None:
        server.answers["/"] = answer()
        await run(context, {}, url=server.url("/"), method="POST", headers=FORM, body=body)
        [request] = server.received
        assert (request.body, request.headers["content-type"]) == ((body or "").encode(), FORM["Content-Type"])

    @pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
    @pytest.mark.parametrize("body", [{"a": 1}, [], 7, False], ids=repr)
    async def test_form_body_as_json_is_an_error(
        self, context: BlockContext, server: LoopbackServer, content_type: str, body: JsonValue
    ) -> None:
        headers: JsonValue = {"content-type": content_type}
        described = await failure(context, {"url": server.url("/"), "method": "POST", "headers": headers, "body": body})
        message = await failure(context, body, url=server.url("/"), method="POST", headers=headers)
        media_type = content_type.partition(";")[0]
        for error in (described, message):
            assert (error.code, error.retryable) == ("invalid_body", False)
            assert error.message.startswith(f"sending JSON as {media_type} is not supported")
        assert server.received == []

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def test_unsafe_methods_send_the_idempotency_key(
        self, context: BlockContext, server: LoopbackServer, method: str
    ) -> None:
        server.answers["/"] = answer()
        await run(context, {"url": server.url("/")}, method=method)
        await run(context, {"url": server.url("/"), "headers": {"idempotency-key": "own"}}, method=method)
        keys = [request.headers.get("idempotency-key") for request in server.received]
        assert keys == [None if method in ("GET", "HEAD") else "key-1", "own"]

    async def test_request_has_the_depth_of_the_execution(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/"] = answer()
        headers: JsonValue = {"bloxserver-DEPTH": "0", "BloxServer-Depth": "-5", "X": "1"}
        await run(context, {"url": server.url("/"), "headers": headers}, headers={"BLOXSERVER-DEPTH": "0"})
        await run(replace(context, depth=7), {}, url=server.url("/"), headers={"bloxserver-depth": "0"})
        assert [request.headers["bloxserver-depth"] for request in server.received] == ["1", "8"]
        assert server.received[0].headers["x"] == "1"

    @pytest.mark.parametrize(
        ("body", "code"),
        [("\ud800", "invalid_body"), ([float("nan")], "invalid_body"), (10**5000, "invalid_body")],
        ids=["surrogate", "nan", "long"],
    )
    async def test_invalid_json_body_is_an_error(self, context: BlockContext, body: JsonValue, code: str) -> None:
        payload = block.payload.model_construct(root={"url": "http://127.0.0.1/", "body": body})
        with pytest.raises(BlockError) as caught:
            await block.handler(payload, block.config(), context)
        assert (caught.value.code, caught.value.retryable) == (code, False)


class TestAnswer:
    """The answer."""

    @pytest.mark.parametrize(
        ("content_type", "sent", "body"),
        [
            ("application/json", b'\xef\xbb\xbf{"a":[1,null]}', {"a": [1, None]}),
            ("text/plain; charset=iso-8859-1", b"\xe9", "é"),
            ("image/png", b"\x89PNG", "data:image/png;base64,iVBORw=="),
        ],
    )
    async def test_response_body_becomes_json_text_or_data_url(
        self, context: BlockContext, server: LoopbackServer, content_type: str, sent: bytes, body: JsonValue
    ) -> None:
        server.answers["/"] = answer(sent, headers={"Content-Type": content_type})
        assert (await run(context, {"url": server.url("/")}))["body"] == body

    async def test_answer_has_status_and_headers(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/"] = answer(b"[]", status="201 Created", headers=JSON | {"X-A": "1", "x-a": "2"})
        assert await run(context, {"url": server.url("/")}) == {
            "status": 201,
            "headers": {"content-type": "application/json", "x-a": "1, 2", "content-length": "2"},
            "body": [],
        }

    @pytest.mark.parametrize(
        ("sent", "cookies"),
        [
            ({"Set-Cookie": "a=1"}, "a=1"),
            (
                {"Set-Cookie": "a=1", "set-cookie": "b=2; Expires=Wed, 21 Oct"},
                ["a=1", "b=2; Expires=Wed, 21 Oct"],
            ),
        ],
        ids=["one", "several"],
    )
    async def test_several_cookies_become_a_list(
        self, context: BlockContext, server: LoopbackServer, sent: dict[str, str], cookies: JsonValue
    ) -> None:
        server.answers["/"] = answer(headers=sent)
        headers = (await run(context, {"url": server.url("/")}))["headers"]
        assert headers["set-cookie"] == cookies

    @pytest.mark.parametrize(
        ("status", "told"), [("404 Nope", "404 Not Found"), ("500 No", "500 Internal Server Error"), ("599 x", "599")]
    )
    async def test_error_status_is_an_error_unless_disabled(
        self, context: BlockContext, server: LoopbackServer, status: str, told: str
    ) -> None:
        server.answers["/"] = answer(b"why", status=status)
        error = await failure(context, {"url": server.url("/?key=secret")})
        assert (error.code, error.message) == ("http_error_status", f"127.0.0.1 answered {told}")
        answered = await run(context, {"url": server.url("/")}, fail_on_error_status=False)
        assert (answered["status"], answered["body"]) == (int(status[:3]), "why")

    async def test_answer_never_contains_the_rest_of_another_response(
        self, context: BlockContext, server: LoopbackServer
    ) -> None:
        foreign = answer(b'"foreign"', headers=JSON)
        server.answers |= {"/": answer(status="204 No Content") + foreign, "/own": answer(b'"own"', headers=JSON)}
        other = replace(context, idempotency_key="other")
        for _ in range(3):
            await run(other, {"url": server.url("/")}, method="POST")
            assert (await run(context, {"url": server.url("/own")}))["body"] == "own"

    async def test_undecodable_response_is_not_retryable(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/"] = answer(b"packed", headers={"Content-Encoding": "br"})
        error = await failure(context, {"url": server.url("/")})
        assert (error.code, error.retryable) == ("response_not_decodable", False)
        assert error.message == "the response of 127.0.0.1 has the Content-Encoding br, which is not supported"
        server.answers["/"] = answer(b"packed", status="503 Busy", headers={"Content-Encoding": "br"})
        error = await failure(context, {"url": server.url("/")})
        assert (error.code, error.retryable) == ("http_error_status", True)

    async def test_redirect_is_followed_if_enabled(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers |= {"/": answer(status="302 Found", headers={"Location": "/to"}), "/to": answer(b"there")}
        assert (await run(context, {"url": server.url("/")}))["status"] == 302
        assert (await run(context, {"url": server.url("/")}, follow_redirects=True))["body"] == "there"


class TestFailure:
    @pytest.mark.parametrize(
        ("payload", "told"),
        [
            (None, "it is not an object with a url"),
            ("http://127.0.0.1/", "it is not an object with a url"),
            ({}, "its url is invalid"),
            ({"url": 1}, "its url is invalid"),
            ({"url": "http://127.0.0.1/", "method": "TRACE"}, "its method is invalid"),
            ({"url": "http://127.0.0.1/", "headers": {"secret": [1]}}, "its headers.secret is invalid"),
        ],
        ids=repr,
    )
    async def test_payload_that_is_no_request_is_rejected(
        self, context: BlockContext, payload: JsonValue, told: str
    ) -> None:
        error = await failure(context, payload)
        assert (error.code, error.message, error.retryable) == (
            "invalid_payload",
            f"the message does not describe a request: {told}",
            False,
        )

    @pytest.mark.parametrize(
        ("request_", "code", "retryable"),
        [
            ({"url": "http://169.254.169.254/"}, "address_refused", False),
            ({"url": "file:///etc/passwd"}, "invalid_url", False),
            ({"url": "http://127.0.0.1/", "headers": {"a": "é"}}, "invalid_header", False),
            ({"url": "http://127.0.0.1:1/"}, "connection_failed", True),
        ],
        ids=repr,
    )
    async def test_client_error_keeps_its_code(
        self, context: BlockContext, request_: JsonValue, code: str, retryable: bool
    ) -> None:
        error = await failure(context, request_)
        assert (error.code, error.retryable) == (code, retryable)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 410, 422, 425, 429, 499, 500, 502, 503, 504])
    async def test_transient_failures_are_retryable(
        self, context: BlockContext, server: LoopbackServer, status: int
    ) -> None:
        server.answers["/"] = answer(status=f"{status} x")
        error = await failure(context, {"url": server.url("/")})
        assert error.retryable == (status in (408, 425, 429, 500, 502, 503, 504))

    @pytest.mark.parametrize(
        ("status", "header", "seconds"),
        [
            (429, "7", 7),
            (503, "0", 0),
            (429, format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
            (429, format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
            (429, "Fri, 02 Jan 2026 03:05:05 -0000", 60),
            (503, "86400", 3600),
            (503, "9" * 5000, 3600),
            (503, "Fri, 31 Dec 9999 23:59:59 GMT", 3600),
            (429, None, None),
            (429, "-1", None),
            (429, "1.5", None),
            (429, "1, 2", None),
            (429, "\u0661", None),
            (429, "soon", None),
            (429, "Fri, 99 Jan 99999 03:05:05 GMT", None),
            (500, "7", None),
            (404, "7", None),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    async def test_retry_after_header_sets_the_delay(
        self, context: BlockContext, server: LoopbackServer, status: int, header: str | None, seconds: float | None
    ) -> None:
        headers = {} if header is None else {"Retry-After": header.encode().decode("latin-1")}
        server.answers["/"] = answer(status=f"{status} x", headers=headers)
        assert (await failure(context, {"url": server.url("/")})).retry_after == seconds

    @pytest.mark.parametrize("url", ["{{ payload.url }}", "http://{{ payload.host }}/", "ht{{ payload.host }}"])
    async def test_invalid_url_after_replacement_is_an_error(self, context: BlockContext, url: str) -> None:
        assert "url" in block.templates
        error = await failure(context, {}, url=url)
        assert (error.code, error.retryable) == ("invalid_url", False)

    @pytest.mark.parametrize(
        "config",
        [
            {"method": "TRACE"},
            {"url": "ftp://127.0.0.1/"},
            {"url": "ftp://{{ payload.host }}"},
            {"url": "http://"},
            {"url": "http://user:secret@example.com/"},
            {"url": None},
            {"headers": {"a": [1]}},
            {"headers": {"a": {}}},
            {"headers": {"a": float("nan")}},
            {"headers": {"a b": "1"}},
            {"headers": {"{{ payload.name }}": "1"}},
            {"headers": {"a": "é"}},
            {"headers": {"a": "1\r\nb: 2"}},
            {"headers": [["a", "1"]]},
            {"headers": FORM, "body": {"a": 1}},
            {"headers": {"content-TYPE": "multipart/form-data; boundary=x"}, "body": [1]},
            {"timeout_seconds": 0},
            {"timeout_seconds": 301},
            {"timeout_seconds": float("nan")},
            {"retries": 1},
        ],
        ids=str,
    )
    def test_invalid_request_configs_are_rejected(self, config: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            block.config.model_validate(config)
