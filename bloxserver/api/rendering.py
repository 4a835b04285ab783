"""Responses with large values, which are written in parts, so that other requests continue meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import lru_cache

from fastapi import Response
from pydantic import BaseModel, TypeAdapter
from starlette.types import Receive, Scope, Send

from bloxserver.api.large_values import PLACEHOLDER_START, holding
from bloxserver.api.schemas import PaginatedResponse
from bloxserver.queries.paging import Page
from bloxserver.raw_json import RawJson

PART_CHARACTERS = 64 * 1024
"""Less than a millisecond to write as JSON, also if each character is escaped."""
PART_ITEMS = 50
"""About a millisecond to validate and write."""


async def render(respond: Callable[[], Awaitable[Response]]) -> Response:
    """Return the response of a function that writes models. Their large values are written in parts."""
    with holding() as held:
        response = await respond()
    return LargeResponse(response, await _parts(bytes(response.body), held)) if held else response


async def render_page(item: type[BaseModel], page: Page) -> Response:
    """Return the response with a page of such items, which are written in parts."""
    adapter = _adapter(item)
    parts = []
    for begin in range(0, len(page.items), PART_ITEMS):
        items = adapter.validate_python(page.items[begin : begin + PART_ITEMS], from_attributes=True)
        parts.append(adapter.dump_json(items, by_alias=True)[1:-1])
        await asyncio.sleep(0)
    empty = PaginatedResponse[BaseModel].model_validate(replace(page, items=[]))
    start, end = empty.model_dump_json(by_alias=True).encode().split(b"]", 1)
    return Response(start + b",".join(parts) + b"]" + end, media_type="application/json")


@lru_cache
def _adapter(item: type[BaseModel]) -> TypeAdapter[list[BaseModel]]:
    return TypeAdapter(list[item])  # type: ignore[valid-type]


async def _parts(body: bytes, held: list[RawJson | str]) -> list[bytes]:
    """Return the body with the values instead of their placeholders, in parts."""
    first, *others = body.split(PLACEHOLDER_START)
    parts = [first]
    for other in others:
        index, _, rest = other.partition(b'"')
        value = held[int(index)]
        parts += [value.text.encode()] if isinstance(value, RawJson) else await _text_parts(value)
        parts.append(rest)
    return parts


async def _text_parts(text: str) -> list[bytes]:
    """Return a text as JSON, in parts."""
    parts = [b'"']
    for begin in range(0, len(text), PART_CHARACTERS):
        part = text[begin : begin + PART_CHARACTERS]
        parts.append(json.dumps(part, ensure_ascii=False)[1:-1].encode())
        await asyncio.sleep(0)
    return [*parts, b'"']


class LargeResponse(Response):
    """A response whose body is sent in parts, with the status and the headers of another response."""

    def __init__(self, response: Response, parts: list[bytes]) -> None:
        super().__init__(status_code=response.status_code, background=response.background)
        self._parts = parts
        self.raw_headers = [header for header in response.raw_headers if header[0] != b"content-length"]
        self.raw_headers.append((b"content-length", str(sum(map(len, parts))).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if self.background is not None:
            await self.background()
