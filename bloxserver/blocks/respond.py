"""`respond`: the response to the webhook that started the execution."""

from __future__ import annotations

import json
import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, RootModel, StrictInt, model_validator

from bloxserver.blocks import templates
from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.json_values import answer
from bloxserver.blocks.shapes import object_shape
from bloxserver.blocks.templated import TemplateText, TemplateValue

MAX_BODY_BYTES = 1024 * 1024
MAX_HEADERS = 20
MAX_HEADER_CHARACTERS = 4096
MAX_URL_CHARACTERS = 2048
REDIRECTS = (301, 302, 303, 307, 308)
WITHOUT_BODY = (204, 205, 304)
HEADERS = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-language",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "retry-after",
    }
)
"""Besides these, a response can have headers with the prefix `X-`."""
NOT_ALLOWED = re.compile(
    "x-(accel|content-type-options|dns-prefetch|forwarded|frame-options|lighttpd|litespeed|permitted|real-ip|reproxy"
    "|request-id|sendfile|ua-compatible|xss)"
)
"""Headers that control browsers and proxies, or that the server sets."""
HEADER_NAME = re.compile("[a-z0-9-]{1,100}")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
URL = re.compile(r"[\x21-\x7e]+")


class RespondPayload(RootModel[JsonValue]):
    """Any JSON value."""


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"must have at most {MAX_HEADERS} headers")
    names = [name.lower() for name in headers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the header {name[:100]} is given twice")
        is_other = HEADER_NAME.fullmatch(name) and name.startswith("x-") and not NOT_ALLOWED.match(name)
        if name not in HEADERS and not is_other:
            allowed = ", ".join(sorted(HEADERS))
            raise ValueError(f"the header {name[:100]!r} is not allowed; use {allowed} or a name that begins with X-")
    return headers


def _checked_status(status: int | str) -> int | str:
    if isinstance(status, int):
        _check_status(status)
    elif "{{" not in status:
        raise ValueError("must be a number, or a text with a placeholder")
    return status


def _check_status(status: int) -> None:
    if not 200 <= status <= 599:
        raise ValueError("must be a number from 200 to 599")


class RespondConfig(BlockConfig):
    status: Annotated[StrictInt | TemplateText, AfterValidator(_checked_status)] | None = Field(
        None, description="The status, from 200 to 599. The default is 200, and 303 with `redirect`."
    )
    headers: Annotated[dict[str, TemplateText], AfterValidator(_checked_headers)] = Field(
        default_factory=dict, description="Headers of the response, with placeholders in their values."
    )
    body: TemplateValue = Field(
        None,
        description="The body: a text, or any JSON value, with placeholders. Without it, the message is the body.",
    )
    redirect: TemplateText | None = Field(
        None, description="An http or https URL, with placeholders: the response redirects there and has no body."
    )

    @model_validator(mode="after")
    def _check_redirect(self) -> Self:
        if self.redirect is None:
            return self
        if "body" in self.model_fields_set:
            raise ValueError("use one of body and redirect")
        if isinstance(self.status, int) and self.status not in REDIRECTS:
            raise ValueError(f"with redirect, status must be one of {', '.join(map(str, REDIRECTS))}")
        return self


async def handle_respond(payload: RespondPayload, config: RespondConfig, context: BlockContext) -> JsonValue:
    try:
        return _response(payload.root, config, context)
    except ValueError as error:
        raise BlockError("invalid_response", str(error), retryable=False) from None


def _response(message: JsonValue, config: RespondConfig, context: BlockContext) -> JsonValue:
    """The response as it is sent. Raises `ValueError`, and as `templates.render` does."""
    scope, budget = context.scope(message), context.budget
    headers: dict[str, JsonValue] = {}
    for name, template in config.headers.items():
        headers[name.lower()] = value = templates.render_text(template, scope, budget)
        if len(value) > MAX_HEADER_CHARACTERS or not HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the header {name} must be ASCII text of at most {MAX_HEADER_CHARACTERS} characters")
    status: JsonValue = 200 if config.redirect is None else 303
    if config.status is not None:
        status = templates.render(config.status, scope, budget)
    if isinstance(status, float) and status.is_integer():
        status = int(status)  # as numbers of expressions are
    if not isinstance(status, int) or isinstance(status, bool):
        raise ValueError("status must be a number from 200 to 599")
    _check_status(status)
    if config.redirect is not None:
        if status not in REDIRECTS:
            raise ValueError(f"with redirect, status must be one of {', '.join(map(str, REDIRECTS))}")
        headers["location"] = _checked_url(templates.render_text(config.redirect, scope, budget))
        return {"status": status, "headers": headers, "body": ""}
    if status in WITHOUT_BODY:
        return {"status": status, "headers": headers, "body": ""}
    body = templates.render(config.body, scope, budget) if "body" in config.model_fields_set else message
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode(errors="replace")) > MAX_BODY_BYTES:
        raise ValueError(f"the body must have at most {MAX_BODY_BYTES} bytes")
    headers.setdefault("content-type", "text/plain; charset=utf-8" if isinstance(body, str) else "application/json")
    return answer({"status": status, "headers": headers, "body": text}, budget)


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("redirect must be an http or https URL")
    if len(url) > MAX_URL_CHARACTERS or not URL.fullmatch(url) or "\\" in url:
        raise ValueError(f"redirect must be a URL of at most {MAX_URL_CHARACTERS} ASCII characters without spaces")
    return url


block = Block(
    name="respond",
    description="Gives the response to the webhook that started the execution, if its trigger waits for it.",
    payload=RespondPayload,
    config=RespondConfig,
    handler=handle_respond,
    rendered=frozenset({"status", "headers", "body", "redirect"}),
    answer_shape=lambda config, message: object_shape("status", "headers", "body"),
    example={
        "config": {"status": 201, "headers": {"X-Order": "{{ payload.number }}"}, "body": {"accepted": True}},
        "payload": {"number": 17},
    },
)
