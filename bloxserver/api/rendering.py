"""Responses with large values, which are written in parts, so that other requests continue meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from fastapi import Response
from pydantic import BaseModel, TypeAdapter
from starlette.types import Receive, Scope, Send

from bloxserver.api.large_values import PLACEHOLDER_START, holding
from bloxserver.api.schemas import CursorPage, PaginatedResponse, StatsSeries
from bloxserver.event_loop import in_parts
from bloxserver.queries.execution_lists import ExecutionList
from bloxserver.queries.paging import Page
from bloxserver.raw_json import RawJson

PART_CHARACTERS = 64 * 1024
"""Less than a millisecond to write as JSON, also if each character is escaped."""
CHUNK_BYTES = 64 * 1024
PART_ITEMS = 25
"""About a millisecond to validate and write, with short texts."""


async def render(respond: Callable[[], Awaitable[Response]]) -> Response:
    """Return the response of a function that writes models. Their large values are written in parts."""
    with holding() as held:
        response = await respond()
    if not held:
        return response
    parts = response.parts if isinstance(response, LargeResponse) else [bytes(response.body)]
    return LargeResponse(response, [written for part in parts for written in await _filled(part, held)])


async def render_page(item: type[BaseModel], page: Page) -> Response:
    """Return the response with a page of such items, which are written in parts."""
    adapter = _adapter(item)
    start, end = _ends(PaginatedResponse[BaseModel].model_validate(replace(page, items=[])))
    parts = [start]
    async for part in in_parts(page.items, PART_ITEMS):
        items = adapter.validate_python(part, from_attributes=True)
        parts += [b"," if len(parts) > 1 else b"", adapter.dump_json(items, by_alias=True)[1:-1]]
    return LargeResponse(Response(media_type="application/json"), [*parts, b"]" + end])


def render_lines(page: ExecutionList) -> Response:
    """Return the response with a page whose items the database has written as JSON."""
    return _filled_list(CursorPage[BaseModel].model_validate(replace(page, items=[])), page.items)


def render_series(empty: StatsSeries, buckets: Sequence[str]) -> Response:
    """Return the response with buckets that the database has written as JSON."""
    return _filled_list(empty, buckets)


def _filled_list(empty: BaseModel, items: Sequence[str]) -> Response:
    start, end = _ends(empty)
    return Response(start + ",".join(items).encode() + b"]" + end, media_type="application/json")


def _ends(empty: BaseModel) -> tuple[bytes, bytes]:
    """The JSON of a model with one empty list: the part before the closing bracket of the list, and that after it."""
    start, end = empty.model_dump_json(by_alias=True).encode().split(b"]", 1)
    return start, end


@lru_cache
def _adapter(item: type[BaseModel]) -> TypeAdapter[list[BaseModel]]:
    return TypeAdapter(list[item])  # type: ignore[valid-type]


async def _filled(body: bytes, held: list[RawJson | str]) -> list[bytes]:
    """Return a part of a body with the values instead of their placeholders, in parts."""
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
    async for part in in_parts(text, PART_CHARACTERS):
        parts.append(json.dumps(part, ensure_ascii=False)[1:-1].encode())
    return [*parts, b'"']


class LargeResponse(Response):
    """A response whose body is sent in parts, with the status and the headers of another response."""

    def __init__(self, response: Response, parts: list[bytes]) -> None:
        super().__init__(status_code=response.status_code, background=response.background)
        self.parts = parts
        self.raw_headers = [header for header in response.raw_headers if header[0] != b"content-length"]
        self.raw_headers.append((b"content-length", str(sum(map(len, parts))).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pending = bytearray()  # sending each short part would be a system call
        for part in self.parts:
            pending += part
            if len(pending) >= CHUNK_BYTES:
                await send({"type": "http.response.body", "body": bytes(pending), "more_body": True})
                pending.clear()
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": bytes(pending), "more_body": False})
        if self.background is not None:
            await self.background()
