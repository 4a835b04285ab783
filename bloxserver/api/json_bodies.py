"""Bodies of requests and responses that are too large for the event loop. See docs/security.md, "Work of users"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any, get_args

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from bloxserver.api.addresses import address_key
from bloxserver.api.definitions import definition_of_json
from bloxserver.api.rendering import render
from bloxserver.api.schemas import RequestModel
from bloxserver.errors import Unavailable, Unprocessable
from bloxserver.isolation import IsolationError, IsolationUnavailable, ResourceExceeded, isolated
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.raw_json import MAX_STORED_VALUES, RawJson, is_large
from bloxserver.services.idempotency import HEADER

KEY_HEADER = HEADER.lower()
SHALLOW = 200
"""Levels of JSON that are always parsed in this process."""
BRACKETS = re.compile(rb"[\[\]{}]")
INVALID: list[Any] = []
"""A body that no model accepts. Its error is replaced by the errors that another process has found."""


class JsonRoute(APIRoute):
    """A route whose large JSON body is read in another process, and whose response writes large values in parts.

    The route's model gets the members of the body. A large member that is not a text is a `RawJson`, which the model
    must accept.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        model = _model(self)

        async def read_and_handle(request: Request) -> Response:
            if model is None:
                if KEY_HEADER in request.headers:
                    await request.body()  # part of what the key stands for: read before a session is opened
                return await handler(request)
            body = await request.body()
            is_costly = is_large(body, MAX_STORED_VALUES) or _is_deep(body)
            if is_costly and _is_json(request):
                return await _handle_large(handler, request, model, body)
            return await handler(request)

        async def handle(request: Request) -> Response:
            return await render(lambda: read_and_handle(request))

        return handle


def _model(route: APIRoute) -> str | None:
    """The name of the model of the route's body; None if the route has no JSON body."""
    for parameter in route.dependant.body_params:
        annotation = parameter.field_info.annotation
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, RequestModel):
                return candidate.__name__
    return None


def _is_deep(body: bytes) -> bool:
    """Whether a JSON text may have too many levels for this process, whose stack has many calls already."""
    if body.count(b"[") + body.count(b"{") <= SHALLOW:
        return False
    depth = deepest = 0
    for bracket in BRACKETS.findall(body):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest > SHALLOW


def _is_json(request: Request) -> bool:
    """Whether FastAPI reads the body as JSON."""
    message = Message()
    message["content-type"] = request.headers.get("content-type") or "application/octet-stream"
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


class _ReadRequest(Request):
    """A request whose JSON body was read in another process."""

    def __init__(self, request: Request, value: Any, sent: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._body = b"{}"
        self._value = value
        self.sent = sent

    async def json(self) -> Any:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


async def _handle_large(
    handler: Callable[[Request], Coroutine[Any, Any, Response]], request: Request, model: str, body: bytes
) -> Response:
    header, *texts = await _isolated("body.read", join_parts([model.encode(), body]), request)
    result = json.loads(header)
    value = result.get("value", INVALID)
    if "malformed" in result:
        value = ValueError() if result["malformed"] is None else _malformed(*result["malformed"])
    for (name, is_text), text in zip(result.get("large", ()), texts, strict=True):
        value[name] = text.decode() if is_text else RawJson(text.decode())
    try:
        return await handler(_ReadRequest(request, value, body))
    except RequestValidationError as invalid:
        if "errors" not in result:
            raise
        others = [error for error in invalid.errors() if error["loc"] != ("body",)]
        of_body = [error | {"loc": ("body", *error["loc"])} for error in result["errors"]]
        raise RequestValidationError([*others, *of_body]) from None


async def sent_body(request: Request) -> bytes:
    """The body of the request as the client sent it."""
    return request.sent if isinstance(request, _ReadRequest) else await request.body()


def _malformed(message: str, position: int) -> json.JSONDecodeError:
    error = json.JSONDecodeError(message, "", 0)
    error.pos = position
    return error


async def definition_in_body(request: Request) -> bytes | None:
    """The definition in the body, or None if there is no body. Raises `Unprocessable`.

    The definition is the body itself, of any content type, or the `organismYaml` of a JSON object. It is read before
    the session opens a connection, so that a slow client holds none.
    """
    body = await request.body()
    if "json" not in request.headers.get("content-type", "").lower():
        return body or None
    if not is_large(body, MAX_STORED_VALUES):
        return definition_of_json(body)
    header, *texts = await _isolated("body.definition", body, request)
    result = json.loads(header)
    if "reasons" in result:
        raise Unprocessable(result["reasons"])
    return texts[0] if result["given"] else None


async def _isolated(function: str, body: bytes, request: Request) -> list[bytes]:
    """Call a function for bodies. Raises `Unprocessable` and `Unavailable`.

    The user is not known before the body is read, so clients of one address have a share of the processes.
    """
    client = address_key(request.client.host if request.client else None)
    try:
        result = await isolated(function, body, tenant=("address", client), max_bytes=len(body))
    except IsolationUnavailable as error:
        raise Unavailable("isolation_unavailable", f"The body cannot be read now: {error}") from None
    except ResourceExceeded as error:
        reason = f"Reading the body exceeds its {error.resource} limit. Send a smaller one."
        raise Unprocessable({"body": reason}) from None
    except IsolationError:
        raise Unprocessable({"body": "The body cannot be read. Send a smaller one."}) from None
    return split_parts(result.body)
