"""Bodies of HTTP messages: JSON values and texts as bytes, and back."""

from __future__ import annotations

import base64
import json
import re
from functools import partial
from math import isfinite
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.clients.charsets import REPLACEMENT, decode, parse_charset
from bloxserver.clients.decoding import ContentEncodingError, ResponseTooLarge, decompress
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.http import HttpResponse, decompressed
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.raw_json import Value, value_of_text
from bloxserver.storable import json_text

MAX_JSON_DEPTH = 64
MAX_BYTES_ON_LOOP = 4 * 1024
"""Larger bodies are read in another process, since they can have thousands of values. These take up to 2 milliseconds,
with the answer that is made of them.
"""
MEDIA_TYPE = re.compile(r"[0-9a-z.+_-]+/[0-9a-z.+_-]+")
TEXTUAL = re.compile(r"(text|message)/.*|.*[/+](json|xml)|application/(x-)?(javascript|ecmascript|www-form-urlencoded)")
BINARY = re.compile(rf"[\x00-\x08\x0e-\x1f\x7f-\x9f{REPLACEMENT}]")
"""Characters that indicate binary data in a body of unknown type."""


def media_type_of(content_type: str) -> str:
    """The media type without parameters, in lower case; `application/octet-stream` for none or an invalid one."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type if MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"


def encode_json(value: JsonValue) -> bytes:
    """Compact JSON. Raises `BlockError`."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise _invalid_body() from None


def encode_body(body: JsonValue) -> tuple[bytes | None, str | None]:
    """The bytes and the content type of a request body: text as it is, null as none, anything else as JSON.

    Raises `BlockError`.
    """
    if body is None:
        return None, None
    if not isinstance(body, str):
        return encode_json(body), "application/json"
    try:
        return body.encode(), "text/plain; charset=utf-8"
    except UnicodeEncodeError:
        raise _invalid_body() from None


async def read_response(response: HttpResponse, context: BlockContext) -> Value:
    """The body of a response as a JSON value, as `read_body`. A large body is decompressed and read in another process.

    Raises `BlockError` and `MemoryLimitReached`.
    """
    try:
        content = response.received
        content_type = response.headers.get("content-type", "")
        if len(content) <= MAX_BYTES_ON_LOOP:
            await context.turn()
            try:
                return read_body(decompress(content, response.encoding, MAX_BYTES_ON_LOOP), content_type)
            except (ResponseTooLarge, ContentEncodingError, ValueError):
                pass  # read in the other process, which knows the error for it
        header = json.dumps([content_type, response.encoding, response.max_bytes, response.host])
        request = partial(join_parts, [header.encode(), content])
        failure, text = split_parts(await context.isolated.run("http.read_body", request))
        if failure:
            raise OutgoingRequestError(*json.loads(failure))
    except OutgoingRequestError as error:
        raise BlockError(error.code, error.message, retryable=error.retryable) from None
    if len(text) > MAX_BYTES_ON_LOOP:
        context.memory.reserve(len(text))
    return value_of_text(text.decode())


def read_body_request(request: bytes) -> bytes:
    """Decompress and read a body in another process. The parts of the response are an error and the JSON text."""
    header, content = split_parts(request)
    content_type, encoding, max_bytes, host = json.loads(header)
    try:
        value = read_body(decompressed(content, encoding, max_bytes, host), content_type)
    except OutgoingRequestError as error:
        return join_parts([json.dumps([error.code, error.message]).encode(), b""])
    return join_parts([b"", json_text(value).encode()])


def read_body(content: bytes, content_type: str) -> JsonValue:
    """A response body as a JSON value: the value of its JSON, else its text, else a `data:` URL."""
    media_type = media_type_of(content_type)
    text = _text(content, media_type, parse_charset(content_type))
    if text is None:
        return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            value = from_json(text, allow_inf_nan=False)
        except ValueError:
            return text
        if _is_storable(value):
            return value  # type: ignore[no-any-return]
    return text


def _text(content: bytes, media_type: str, charset: str | None) -> str | None:
    """The text of a body; None for a binary one.

    Some servers declare a charset for every type. For a type that is not known to be text, the charset counts only
    where the result looks like text.
    """
    try:
        text = decode(content, charset if TEXTUAL.fullmatch(media_type) else None)
    except UnicodeDecodeError:
        if charset is None:
            return None
        text = decode(content, charset)
        if BINARY.search(text):
            return None
    return None if "\0" in text else text


def _invalid_body() -> BlockError:
    return BlockError("invalid_body", "the body is neither text nor valid JSON", retryable=False)


def _is_storable(value: Any) -> bool:
    """Whether databases can store it: it has no NUL, no infinite number (1e400 is one) and a limited depth."""
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
