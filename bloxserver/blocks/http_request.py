"""`http.request`: asks another server and answers with what it said."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from math import isfinite
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
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, from_json

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.clients.http import DEPTH_HEADER, HttpResponse, OutgoingRequestError, read_url

MAX_TIMEOUT_SECONDS = 300
MAX_JSON_DEPTH = 64
MEDIA_TYPE = re.compile(r"[0-9a-z.+_-]+/[0-9a-z.+_-]+")
BODY_METHODS = ("POST", "PUT", "PATCH")
# Statuses below 500 with which a server asks for another attempt.
PASSING_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


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
    content, content_type = _encoded(description.body)
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
    return {"status": response.status, "headers": dict(response.headers), "body": _read_body(response)}


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
        retryable=status >= 500 or status in PASSING_STATUSES,
        retry_after=response.retry_after(now) if status in (429, 503) else None,
    )


def encode_json(value: JsonValue) -> bytes:
    """Compact JSON. Raises `BlockError`."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise BlockError("invalid_body", "the body is neither text nor valid JSON", retryable=False) from None


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


def _encoded(body: JsonValue) -> tuple[bytes | None, str | None]:
    """A body's bytes and content type. Raises `BlockError`."""
    if body is None:
        return None, None
    if not isinstance(body, str):
        return encode_json(body), "application/json"
    try:
        return body.encode(), "text/plain; charset=utf-8"
    except UnicodeEncodeError:
        raise BlockError("invalid_body", "the body is neither text nor valid JSON", retryable=False) from None


def _read_body(response: HttpResponse) -> JsonValue:
    """A body as JSON can hold it: what its JSON says, its text, or else a `data:` URL."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not MEDIA_TYPE.fullmatch(media_type):
        media_type = "application/octet-stream"
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            value = from_json(response.content, allow_inf_nan=False)
        except ValueError:
            pass
        else:
            if _is_storable(value):
                return value  # type: ignore[no-any-return]
    try:
        text = response.content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return text
    return f"data:{media_type};base64,{base64.b64encode(response.content).decode()}"


def _is_storable(value: Any) -> bool:
    """Whether a database takes it: no NUL, no infinite number (1e400 is one), no endless depth."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        for each in level:
            if (isinstance(each, str) and "\0" in each) or (isinstance(each, float) and not isfinite(each)):
                return False
        level = [child for each in level for child in _children(each)]
        if not level:
            return True
    return False


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


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
