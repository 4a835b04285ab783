"""`http.request`: sends an HTTP request and answers with the response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    RootModel,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError, JsonSchema
from bloxserver.blocks.http_bodies import encode_body, read_response
from bloxserver.blocks.http_headers import ConfigHeaders, Headers, form_problem, merged, set_default
from bloxserver.blocks.shapes import object_shape
from bloxserver.blocks.tools import any_schema, object_schema, schema_without
from bloxserver.clients.http import DEPTH_HEADER, HttpResponse, OutgoingRequestError, read_url
from bloxserver.raw_json import Value, object_of

MAX_TIMEOUT_SECONDS = 300
SCHEMES = ("http://", "https://")
COMPLETE_HOST = re.compile(r"https?://[^/?#]+[/?#]")
BODY_METHODS = ("POST", "PUT", "PATCH")
# Statuses below 500 after which a retry may succeed.
TRANSIENT_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def check_url(url: str) -> None:
    """Raise `ValueError` if the URL is invalid for all values of its placeholders."""
    fixed, placeholder, _ = url.partition("{{")
    start = fixed.lower()
    may_be_one = any(scheme.startswith(start) or start.startswith(scheme) for scheme in SCHEMES)
    if placeholder and may_be_one and not COMPLETE_HOST.match(start):
        return  # the rest is validated after the placeholders are replaced
    try:
        read_url(fixed)
    except OutgoingRequestError as error:
        raise ValueError(error.message) from None


def _checked_url(url: str) -> str:
    check_url(url)
    return url


def without_null(schema: dict[str, Any]) -> None:
    """Remove null from the JSON Schema of a member for which null is not the same as no value."""
    schema.pop("default", None)
    if "anyOf" in schema:
        [other] = [branch for branch in schema.pop("anyOf") if branch != {"type": "null"}]
        schema.update(other)


Url = Annotated[str, AfterValidator(_checked_url)]
Method = Annotated[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"], BeforeValidator(_upper)]


class RequestDescription(BaseModel):
    """The request in a message."""

    url: str
    method: Method | None = None
    headers: Headers | None = Field(None, description="Numbers and booleans become text; null removes a header.")
    body: JsonValue = Field(None, description="A text is sent unchanged, other values as JSON; null sends no body.")


class HttpRequestPayload(RootModel[JsonValue]):
    """The request, or its body if the config has the `url`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read this schema. For them the payload describes a request, although any JSON is accepted.
        return handler.resolve_ref_schema(handler(RequestDescription.__pydantic_core_schema__))


class HttpRequestConfig(BlockConfig):
    """Members of the config take precedence over those of the message."""

    method: Method | None = Field(None, description="The method. Default: that of the message, or GET.")
    url: Url | None = Field(
        None,
        description="The URL. If set, the message is the body of a POST, PUT or PATCH; else it describes the request.",
        json_schema_extra=without_null,
    )
    headers: ConfigHeaders | None = Field(
        None,
        description="Headers, added to those of the message. Numbers and booleans become text; null removes a header.",
    )
    body: JsonValue = Field(
        None,
        description="The body. A text is sent unchanged, other values as JSON. Null sends no body.",
        json_schema_extra=without_null,
    )
    timeout_seconds: float = Field(
        30, gt=0, le=MAX_TIMEOUT_SECONDS, description="The time limit for the whole request."
    )
    follow_redirects: bool = Field(False, description="Follow up to three redirects.")
    fail_on_error_status: bool = Field(True, description="Treat a status of 400 and above as an error.")

    @field_validator("url", mode="before")
    @classmethod
    def _require_url(cls, url: object) -> object:
        # Otherwise a placeholder with the value null would let the message choose the URL.
        if url is None:
            raise ValueError("must not be null; remove it if the message describes the request")
        return url

    @field_validator("body")
    @classmethod
    def _refuse_form(cls, body: JsonValue, info: ValidationInfo) -> JsonValue:
        if problem := form_problem(info.data.get("headers") or {}, body):
            raise ValueError(problem)
        return body


async def handle_request(payload: HttpRequestPayload, config: HttpRequestConfig, context: BlockContext) -> Value:
    description = _build_request(payload.root, config)
    method = description.method or "GET"
    headers = dict(description.headers or {})
    if problem := form_problem(headers, description.body):
        raise BlockError("invalid_body", problem, retryable=False)
    content, content_type = encode_body(description.body)
    if content_type is not None:
        set_default(headers, "Content-Type", content_type)
    if method not in ("GET", "HEAD"):
        set_default(headers, "Idempotency-Key", context.idempotency_key)
    response = await send_request(
        context,
        method,
        description.url,
        headers=headers,
        content=b"" if content is None and method in BODY_METHODS else content,
        timeout_seconds=config.timeout_seconds,
        follow_redirects=config.follow_redirects,
    )
    if response.status >= 400 and config.fail_on_error_status:
        raise status_error(response, context.clock())
    body = await read_response(response, context)
    return object_of({"status": response.status, "headers": _response_headers(response), "body": body})


def _response_headers(response: HttpResponse) -> dict[str, JsonValue]:
    """Return the headers of a response by lower-case name. Several Set-Cookie headers become a list."""
    headers: dict[str, JsonValue] = {**response.headers}
    if response.cookies:
        headers["set-cookie"] = response.cookies[0] if len(response.cookies) == 1 else [*response.cookies]
    return headers


async def send_request(
    context: BlockContext,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None,
    timeout_seconds: float,
    follow_redirects: bool = False,
) -> HttpResponse:
    """Send a request with the depth of this execution, and return the response, whatever its status is.

    Read its body with `read_response`. Raises `BlockError`.
    """
    try:
        return await context.http.request(
            method,
            url,
            headers=merged(headers, {DEPTH_HEADER: str(context.depth + 1)}),
            content=content,
            timeout_seconds=timeout_seconds,
            follow_redirects=follow_redirects,
        )
    except OutgoingRequestError as error:
        raise BlockError(error.code, error.message, retryable=error.retryable) from None


def status_error(response: HttpResponse, now: datetime) -> BlockError:
    """Return the error for an error status. It has the host only, because a URL may contain a secret."""
    status = response.status
    return BlockError(
        "http_error_status",
        f"{response.host} answered {_phrase(status)}",
        retryable=status >= 500 or status in TRANSIENT_STATUSES,
        retry_after=response.retry_after(now) if status in (429, 503) else None,
    )


def _build_request(payload: JsonValue, config: HttpRequestConfig) -> RequestDescription:
    """Merge the members of the config and of the message into a request. Raises `BlockError`."""
    has_body = "body" in config.model_fields_set
    if config.url is not None:
        body = payload if config.method in BODY_METHODS and not has_body else config.body
        return RequestDescription(url=config.url, method=config.method, headers=config.headers, body=body)
    try:
        described = RequestDescription.model_validate(payload)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])[:100]
        reason = f"its {where} is invalid" if where else "it is not an object with a url"
        raise BlockError(
            "invalid_payload", f"the message does not describe a request: {reason}", retryable=False
        ) from None
    return RequestDescription(
        url=described.url,
        method=config.method or described.method,
        headers=merged(described.headers or {}, config.headers or {}),
        body=config.body if has_body else described.body,
    )


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _input_schema(config: HttpRequestConfig) -> JsonSchema | None:
    if config.url is not None:
        if config.method in BODY_METHODS and "body" not in config.model_fields_set:
            return any_schema("The body of the request: a text or any other JSON value.")
        return object_schema({}, ())
    fixed = {"method"} if config.method is not None else set()
    fixed |= {"body"} & config.model_fields_set
    return schema_without(RequestDescription, fixed) if fixed else None


block = Block(
    name="http.request",
    description="Sends an HTTP request and answers with its status, headers and body.",
    payload=HttpRequestPayload,
    config=HttpRequestConfig,
    answer_shape=lambda config, message: object_shape("status", "headers", "body"),
    handler=handle_request,
    aliases=("xml_pipeline.tools.fetch.handle_fetch",),
    templates=frozenset({"url", "headers", "body"}),
    input_schema=_input_schema,
    example={
        "config": {"method": "GET", "timeout_seconds": 10},
        "payload": {"url": "https://example.com/items", "headers": {"Accept": "application/json"}},
    },
)
