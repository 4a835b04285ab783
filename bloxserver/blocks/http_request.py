"""`http.request`: sends an HTTP request and answers with the response."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    RootModel,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.http_bodies import encode_body, read_body
from bloxserver.clients.http import DEPTH_HEADER, HttpResponse, OutgoingRequestError, read_url

MAX_TIMEOUT_SECONDS = 300
BODY_METHODS = ("POST", "PUT", "PATCH")
# Statuses below 500 by which a server asks for another attempt.
TRANSIENT_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _checked_url(url: str) -> str:
    if "{{" in url:  # known when its placeholders are replaced
        return url
    try:
        read_url(url)
    except OutgoingRequestError as error:
        raise ValueError(error.message) from None
    return url


Url = Annotated[str, AfterValidator(_checked_url)]
Method = Annotated[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"], BeforeValidator(_upper)]


class RequestDescription(BaseModel):
    """A request as a message describes it."""

    url: str
    method: Method | None = None
    headers: dict[str, str] | None = None
    body: JsonValue = Field(None, description="A text is sent as it is, anything else as JSON; null is none.")


class HttpRequestPayload(RootModel[JsonValue]):
    """The request, or its body when the config has the `url`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read it to know what to send: for them it is the description, although any JSON is taken.
        return handler.resolve_ref_schema(handler(RequestDescription.__pydantic_core_schema__))


class HttpRequestConfig(BlockConfig):
    """What is set here goes before what the message says."""

    method: Method | None = Field(None, description="GET unless set here or in the message.")
    url: Url | None = Field(
        None, description="With it the message is the body of a POST, PUT or PATCH; without, it describes the request."
    )
    headers: dict[str, str] | None = Field(None, description="Added to those of the message.")
    body: JsonValue = Field(None, description="A text is sent as it is, anything else as JSON; null is none.")
    timeout_seconds: float = Field(30, gt=0, le=MAX_TIMEOUT_SECONDS, description="For all of it.")
    follow_redirects: bool = Field(False, description="Follow up to three redirects.")
    fail_on_error_status: bool = Field(True, description="Treat a status of 400 and above as an error.")


async def handle_request(payload: HttpRequestPayload, config: HttpRequestConfig, context: BlockContext) -> JsonValue:
    description = _described(payload.root, config)
    method = description.method or "GET"
    headers = dict(description.headers or {})
    content, content_type = encode_body(description.body)
    if content_type is not None:
        _set_default(headers, "Content-Type", content_type)
    if method not in ("GET", "HEAD"):
        _set_default(headers, "Idempotency-Key", context.idempotency_key)
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
    body = read_body(response.content, response.headers.get("content-type", ""))
    return {"status": response.status, "headers": _answered_headers(response), "body": body}


def _answered_headers(response: HttpResponse) -> dict[str, JsonValue]:
    """The headers of a response by lower-case name; several Set-Cookie are a list."""
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
    """Any answer to a request that says how deep this execution stands. Raises `BlockError`."""
    try:
        return await context.http.request(
            method,
            url,
            headers=_merged(headers, {DEPTH_HEADER: str(context.depth + 1)}),
            content=content,
            timeout_seconds=timeout_seconds,
            follow_redirects=follow_redirects,
        )
    except OutgoingRequestError as error:
        raise BlockError(error.code, error.message, retryable=error.retryable) from None


def status_error(response: HttpResponse, now: datetime) -> BlockError:
    """What a status that is a failure means: it names the host, since a URL may hold a secret."""
    status = response.status
    return BlockError(
        "http_error_status",
        f"{response.host} answered {_phrase(status)}",
        retryable=status >= 500 or status in TRANSIENT_STATUSES,
        retry_after=response.retry_after(now) if status in (429, 503) else None,
    )


def _described(payload: JsonValue, config: HttpRequestConfig) -> RequestDescription:
    """The request to send: the config's members, then the message's. Raises `BlockError`."""
    if config.url is not None:
        body = payload if config.method in BODY_METHODS and config.body is None else config.body
        return RequestDescription(url=config.url, method=config.method, headers=config.headers, body=body)
    try:
        described = RequestDescription.model_validate(payload)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])[:100]
        reason = f"its {where} is not valid" if where else "it is not an object with a url"
        raise BlockError(
            "invalid_payload", f"the message does not describe a request: {reason}", retryable=False
        ) from None
    return RequestDescription(
        url=described.url,
        method=config.method or described.method,
        headers=_merged(described.headers or {}, config.headers or {}),
        body=described.body if config.body is None else config.body,
    )


def _merged(headers: Mapping[str, str], winners: Mapping[str, str]) -> dict[str, str]:
    won = {name.lower() for name in winners}
    return {**{name: value for name, value in headers.items() if name.lower() not in won}, **winners}


def _set_default(headers: dict[str, str], name: str, value: str) -> None:
    if name.lower() not in {given.lower() for given in headers}:
        headers[name] = value


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


block = Block(
    name="http.request",
    description="Sends an HTTP request and answers with its status, headers and body.",
    payload=HttpRequestPayload,
    config=HttpRequestConfig,
    handler=handle_request,
    aliases=("xml_pipeline.tools.fetch.handle_fetch",),
    templates=frozenset({"url", "headers", "body"}),
    example={
        "config": {"method": "GET", "timeout_seconds": 10},
        "payload": {"url": "https://example.com/items", "headers": {"Accept": "application/json"}},
    },
)
