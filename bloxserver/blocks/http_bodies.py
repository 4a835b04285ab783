"""Bodies of HTTP messages: JSON values and texts as bytes, and back."""

from __future__ import annotations

import base64
import json
import re
from math import isfinite
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from bloxserver.blocks.base import BlockError, IsolatedTasks
from bloxserver.blocks.raw_json import Value, value_of_text
from bloxserver.clients.charsets import REPLACEMENT, decode, parse_charset
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.storable import json_text

MAX_JSON_DEPTH = 64
MAX_BYTES_ON_LOOP = 8 * 1024
"""Larger bodies are read in another process, since they can have thousands of values."""
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


async def read_response(isolated: IsolatedTasks, content: bytes, content_type: str) -> Value:
    """As `read_body`; a large body is read in another process. Raises `BlockError`."""
    if len(content) <= MAX_BYTES_ON_LOOP:
        return read_body(content, content_type)
    request = join_parts([content_type.encode(errors="surrogateescape"), content])
    return value_of_text((await isolated.run("http.read_body", request)).decode())


def read_body_request(request: bytes) -> bytes:
    """`read_body` for another process: the parts of the request are the content type and the content."""
    content_type, content = split_parts(request)
    return json_text(read_body(content, content_type.decode(errors="surrogateescape"))).encode()


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
