"""`webhook.send` against a real server."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError
from standardwebhooks import Webhook

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.webhook_send import block
from tests.blocks.conftest import NOW
from tests.clients.loopback import LoopbackServer, answer

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


async def run(context: BlockContext, payload: JsonValue, **config: Any) -> Any:
    return await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)


async def failure(context: BlockContext, payload: JsonValue, **config: Any) -> BlockError:
    with pytest.raises(BlockError) as caught:
        await run(context, payload, **config)
    return caught.value


class TestWebhook:
    @pytest.mark.parametrize("payload", [{"é": [1, None]}, "text", None, [], 0], ids=repr)
    async def test_body_is_the_message_as_json(
        self, context: BlockContext, server: LoopbackServer, payload: JsonValue
    ) -> None:
        server.answers["/hook"] = answer(status="204 No Content")
        answered = await run(context, payload, url=server.url("/hook"), headers={"X-Own": "1"})
        [request] = server.received
        assert (request.method, request.path, json.loads(request.body)) == ("POST", "/hook", payload)
        assert (request.headers["content-type"], request.headers["x-own"]) == ("application/json", "1")
        assert answered == {"status": 204, "id": request.headers["webhook-id"]}
        assert request.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
        assert "webhook-signature" not in request.headers

    async def test_type_wraps_the_message_in_an_event(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/"] = answer()
        await run(context, {"order": 1}, url=server.url("/"), type="order.paid")
        [request] = server.received
        assert json.loads(request.body) == {
            "type": "order.paid",
            "timestamp": "2026-01-02T03:04:05Z",
            "data": {"order": 1},
        }

    async def test_signature_verifies_with_the_secret(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/"] = answer()
        # Receivers reject messages older than five minutes.
        await run(replace(context, clock=lambda: datetime.now(UTC)), {"a": "é"}, url=server.url("/"), secret=SECRET)
        [request] = server.received
        Webhook(SECRET).verify(request.body, dict(request.headers))

    async def test_webhook_id_is_equal_for_every_attempt(self, context: BlockContext, server: LoopbackServer) -> None:
        server.answers["/"] = answer()
        later = replace(context, clock=lambda: NOW + timedelta(minutes=5))
        for attempt in (context, later, replace(context, idempotency_key="key-2")):
            await run(attempt, {}, url=server.url("/"), secret=SECRET)
        first, second, other = (request.headers for request in server.received)
        assert first["webhook-id"] == second["webhook-id"] != other["webhook-id"]
        assert first["webhook-timestamp"] != second["webhook-timestamp"]
        assert first["webhook-signature"] != second["webhook-signature"]
        assert "key-1" not in str(first)

    async def test_config_cannot_override_identity_and_depth_headers(
        self, context: BlockContext, server: LoopbackServer
    ) -> None:
        server.answers["/"] = answer()
        headers = {
            "Webhook-Id": "forged",
            "webhook-timestamp": "0",
            "WEBHOOK-SIGNATURE": "v1,forged",
            "bloxserver-depth": "0",
            "content-type": "application/cloudevents+json",
        }
        await run(replace(context, depth=2), {}, url=server.url("/"), headers=headers)
        [request] = server.received
        assert "forged" not in str(request.headers)
        assert request.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
        assert request.headers["bloxserver-depth"] == "3"
        assert request.headers["content-type"] == "application/cloudevents+json"

    async def test_header_numbers_and_booleans_become_text_and_null_is_removed(
        self, context: BlockContext, server: LoopbackServer
    ) -> None:
        server.answers["/"] = answer()
        await run(context, {}, url=server.url("/"), headers={"X-A": 7, "X-B": True, "X-C": None})
        [request] = server.received
        assert (request.headers["x-a"], request.headers["x-b"], "x-c" in request.headers) == ("7", "true", False)

    @pytest.mark.parametrize("body", [b"packed", bytes(100_001)], ids=["not decodable", "too large"])
    async def test_response_body_does_not_affect_delivery(
        self, context: BlockContext, server: LoopbackServer, body: bytes
    ) -> None:
        server.answers["/"] = answer(body, headers={"Content-Encoding": "br"})
        assert (await run(context, {}, url=server.url("/")))["status"] == 200

    async def test_answer_never_contains_the_rest_of_another_response(
        self, context: BlockContext, server: LoopbackServer
    ) -> None:
        server.answers |= {"/": answer() + answer(status="500 Foreign"), "/own": answer(status="202 Accepted")}
        await context.http.request("POST", server.url("/"))
        assert (await run(context, {}, url=server.url("/own")))["status"] == 202
        assert [request.path for request in server.received] == ["/", "/own"]


class TestFailure:
    @pytest.mark.parametrize(
        ("status", "retryable", "retry_after"),
        [
            ("302 Found", False, None),
            ("400 No", False, None),
            ("404 No", False, None),
            ("408 No", True, None),
            ("410 Gone", False, None),
            ("425 No", True, None),
            ("429 No", True, 9),
            ("500 No", True, None),
            ("503 No", True, 9),
        ],
    )
    async def test_status_other_than_success_is_an_error_unless_disabled(
        self,
        context: BlockContext,
        server: LoopbackServer,
        status: str,
        retryable: bool,
        retry_after: float | None,
    ) -> None:
        headers = {"Retry-After": "9", "Location": "/next"}
        server.answers |= {"/": answer(b"why", status=status, headers=headers), "/next": answer()}
        error = await failure(context, {}, url=server.url("/?key=secret"))
        assert (error.code, error.retryable, error.retry_after) == ("http_error_status", retryable, retry_after)
        assert error.message.startswith(f"127.0.0.1 answered {status[:3]} ")
        assert "secret" not in error.message
        answered = await run(context, {}, url=server.url("/"), fail_on_error_status=False)
        assert answered["status"] == int(status[:3])
        assert [request.path for request in server.received] == ["/?key=secret", "/"]

    @pytest.mark.parametrize(
        ("config", "code", "retryable"),
        [
            ({"url": "http://10.0.0.1/"}, "address_refused", False),
            ({"url": "http://127.0.0.1:1/"}, "connection_failed", True),
            ({"url": "{{ payload.url }}"}, "invalid_url", False),
            ({"url": "http://127.0.0.1/", "secret": "{{ payload.secret }}"}, "invalid_secret", False),
            ({"url": "http://127.0.0.1/", "headers": {"a": "{{ é"}}, "invalid_header", False),
        ],
        ids=lambda value: str(value)[:60],
    )
    async def test_request_errors_are_retryable_or_final(
        self, context: BlockContext, config: dict[str, Any], code: str, retryable: bool
    ) -> None:
        error = await failure(context, {}, **config)
        assert (error.code, error.retryable) == (code, retryable)

    @pytest.mark.parametrize("payload", [float("nan"), "\ud800", [10**5000]], ids=["nan", "surrogate", "long"])
    async def test_message_that_is_no_json_is_an_error(self, context: BlockContext, payload: JsonValue) -> None:
        config = block.config.model_validate({"url": "http://127.0.0.1/"})
        with pytest.raises(BlockError) as caught:
            await block.handler(block.payload.model_construct(root=payload), config, context)
        assert (caught.value.code, caught.value.retryable) == ("invalid_body", False)

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"url": "ftp://example.com"},
            {"url": "https://example.com", "secret": "plain"},
            {"url": "https://example.com", "secret": "whsec_c2hvcnQ="},
            {"url": "https://example.com", "type": ""},
            {"url": "https://example.com", "secret": None},
            {"url": "https://example.com", "headers": {"a": [1]}},
            {"url": "https://example.com", "headers": {"a": "é"}},
            {"url": "https://example.com", "headers": {"a b": "1"}},
            {"url": "https://example.com", "headers": {"content-type": "application/x-www-form-urlencoded"}},
            {"url": "https://example.com", "headers": {"Content-Type": "multipart/form-data"}},
            {"url": "https://example.com", "timeout_seconds": 301},
            {"url": "https://example.com", "retries": 1},
        ],
        ids=str,
    )
    def test_invalid_webhook_configs_are_rejected(self, config: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            block.config.model_validate(config)


def test_config_repr_hides_secrets() -> None:
    config = block.config.model_validate({"url": "https://h/secret", "secret": SECRET, "headers": {"X": "secret"}})
    assert "secret" not in repr(config).lower()
