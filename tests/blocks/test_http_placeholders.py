"""Configs of `http.request` and `webhook.send`: problems that `check` reports, and replaced placeholders."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import JsonValue

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check
from bloxserver.settings import Settings
from tests.clients.loopback import LoopbackServer, Received, answer
from tests.engine.pump_runs import pump

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
FORM_PROBLEM = (
    "sending JSON as application/x-www-form-urlencoded is not supported; write the "
    'body as text, like "a=1&b=2", or remove the Content-Type'
)


def organism(config: dict[str, Any], handler: str = "http.request") -> str:
    listener = {"name": "send", "description": "Sends it", "handler": handler, "config": config, "retries": 3}
    return json.dumps({"organism": {"name": "x"}, "listeners": [listener]})


class TestCheck:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"headers": {"X-A": ["1"]}}, "config.headers.X-A: must be text, a number or a boolean; null leaves"),
            ({"headers": {"X-A": {"a": 1}}}, "config.headers.X-A: must be text, a number or a boolean; null leaves"),
            ({"headers": {"X A": "1"}}, '"X A" is not a valid header'),
            ({"headers": {"X-A": "é"}}, 'the value of the header "X-A" must consist of printable ASCII'),
            ({"headers": FORM, "body": {"a": "{{ payload.a }}"}}, f"config.body: {FORM_PROBLEM}"),
            ({"url": None}, "config.url: must not be null"),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_invalid_requests_are_reported(self, config: dict[str, Any], expected: str) -> None:
        problems = check(organism(config), get_registry())
        assert [problem.code for problem in problems] == ["invalid_config"]
        assert problems[0].message.startswith(expected)
        assert problems[0].hint

    def test_form_content_type_of_a_webhook_is_reported(self) -> None:
        config = {"url": "https://x.example", "headers": FORM}
        [problem] = check(organism(config, "webhook.send"), get_registry())
        assert "must not be a form type" in problem.message

    @pytest.mark.parametrize(
        "config",
        [
            {"headers": {"X-A": 1, "X-B": True, "X-C": None, "X-D": "{{ payload.é }}"}},
            {"headers": FORM, "body": "a={{ payload.a }}"},
            {"headers": FORM, "body": "{{ payload.form }}"},
            {"headers": {"Content-Type": "{{ payload.type }}"}, "body": {"a": 1}},
            {"body": None},
        ],
        ids=str,
    )
    def test_valid_requests_are_accepted(self, config: dict[str, Any]) -> None:
        assert check(organism({"url": "https://x.example", **config}), get_registry()) == []


class TestPlaceholders:
    async def sent(self, server: LoopbackServer, payload: JsonValue, **config: Any) -> Received:
        server.answers["/"] = answer()
        outcome, _ = await self.ran(payload, {"url": server.url("/"), "method": "POST", **config})
        assert type(outcome).__name__ == "Finished"
        [request] = server.received
        return request

    async def ran(self, payload: JsonValue, config: dict[str, Any], handler: str = "http.request") -> Any:
        return await pump(
            organism(config, handler), payload, settings=Settings(ssrf_allow_cidrs=(ip_network("127.0.0.1/32"),))
        )

    async def refused(self, payload: JsonValue, config: dict[str, Any], handler: str = "http.request") -> str:
        """Return the error of a step that failed at its first attempt, although it has retries."""
        _, log = await self.ran(payload, config, handler)
        [step] = log.steps
        assert (step.status.value, step.attempt) == ("error", 1)
        return f"{step.error_code}: {step.error}"

    async def test_null_body_sends_no_body(self, server: LoopbackServer) -> None:
        request = await self.sent(server, {"data": None, "other": "secret"}, body="{{ payload.data }}")
        assert (request.body, request.headers["content-length"]) == (b"", "0")
        assert "content-type" not in request.headers

    @pytest.mark.parametrize(
        ("value", "body"),
        [({"a": 1}, b'{"a":1}'), ([], b"[]"), (0, b"0"), (False, b"false"), ("", b""), ("text", b"text")],
    )
    async def test_other_body_values_are_sent(self, server: LoopbackServer, value: JsonValue, body: bytes) -> None:
        assert (await self.sent(server, {"data": value}, body="{{ payload.data }}")).body == body

    @pytest.mark.parametrize(
        ("value", "text"), [(7, "7"), (1.5, "1.5"), (True, "true"), (False, "false"), (None, None), ("x", "x")]
    )
    async def test_header_values_become_text(self, server: LoopbackServer, value: JsonValue, text: str | None) -> None:
        request = await self.sent(server, {"data": value}, headers={"X-A": "{{ payload.data }}", "X-B": "b"})
        assert (request.headers.get("x-a"), request.headers["x-b"]) == (text, "b")

    @pytest.mark.parametrize("handler", ["http.request", "webhook.send"])
    @pytest.mark.parametrize("value", [[1], {"a": 1}, "é", "a\r\nb: c"], ids=ascii)
    async def test_invalid_header_value_is_an_error(
        self, server: LoopbackServer, value: JsonValue, handler: str
    ) -> None:
        error = await self.refused(
            {"data": value}, {"url": server.url("/"), "headers": {"X-A": "{{ payload.data }}"}}, handler
        )
        assert error.startswith("invalid_config: invalid config after its placeholders were replaced: headers")
        assert server.received == []

    async def test_form_with_an_object_is_an_error(self, server: LoopbackServer) -> None:
        config = {"url": server.url("/"), "method": "POST", "headers": {"Content-Type": "{{ payload.type }}"}}
        payload: JsonValue = {"type": FORM["Content-Type"], "data": {"a": 1}}
        error = await self.refused(payload, {**config, "body": "{{ payload.data }}"})
        assert error == f"invalid_config: invalid config after its placeholders were replaced: body: {FORM_PROBLEM}"
        assert await self.refused(payload, config) == f"invalid_body: {FORM_PROBLEM}"
        assert server.received == []

    async def test_null_url_does_not_let_the_message_choose_the_url(self, server: LoopbackServer) -> None:
        payload: JsonValue = {"target": None, "url": server.url("/"), "method": "POST"}
        error = await self.refused(payload, {"url": "{{ payload.target }}"})
        assert error.startswith(
            "invalid_config: invalid config after its placeholders were replaced: url: must not be null"
        )
        assert server.received == []

    async def test_null_secret_does_not_send_an_unsigned_webhook(self, server: LoopbackServer) -> None:
        config = {"url": server.url("/"), "secret": "{{ payload.secret }}"}
        error = await self.refused({"secret": None}, config, "webhook.send")
        assert error.startswith(
            "invalid_config: invalid config after its placeholders were replaced: secret: must not be null"
        )
        assert server.received == []
