"""Large values in responses are written in parts, and cannot be confused with placeholders."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import Message

from bloxserver.api.large_values import PLACEHOLDER_START, LongText, MaybeRaw, holding
from bloxserver.api.rendering import PART_CHARACTERS, render, render_page
from bloxserver.api.schemas import CamelModel, PaginatedResponse
from bloxserver.queries.paging import Page
from bloxserver.raw_json import SMALL_CHARACTERS, RawJson

RAW = RawJson('{"a": [1, "\\u00e9"]}')


class Body(CamelModel):
    text: LongText | None = None
    raw_value: MaybeRaw[dict[str, Any] | None] = None


async def sent(response: Response) -> tuple[dict[str, str], list[bytes]]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError

    await response({"type": "http", "method": "GET"}, receive, send)
    return dict(response.headers), [message["body"] for message in messages[1:]]


async def rendered(body: BaseModel) -> Response:
    async def respond() -> Response:
        return Response(body.model_dump_json(by_alias=True), 201, {"X-A": "b"}, "application/json")

    return await render(respond)


@pytest.mark.parametrize(
    "text",
    ["a" * 10_000, '"\\\n\x00' * 50_000, "é€😀" * 60_000, "x" * (2 * PART_CHARACTERS), ""],
    ids=["short", "escapes", "unicode", "whole parts", "empty"],
)
async def test_long_text_and_json_are_written_as_the_model_would_write_them(text: str) -> None:
    headers, parts = await sent(await rendered(Body(text=text, raw_value=RAW)))  # type: ignore[arg-type]
    content = b"".join(parts)
    assert PLACEHOLDER_START not in content
    assert json.loads(content) == {"text": text, "rawValue": {"a": [1, "é"]}}
    assert (headers["content-length"], headers["x-a"]) == (str(len(content)), "b")
    assert headers["content-type"] == "application/json"


async def test_status_and_content_of_a_response_without_large_values_are_unchanged() -> None:
    response = await rendered(Body(text="a" * SMALL_CHARACTERS, raw_value={}))
    assert (type(response), response.status_code) == (Response, 201)
    assert json.loads(bytes(response.body)) == {"text": "a" * SMALL_CHARACTERS, "rawValue": {}}


async def test_other_tasks_run_while_a_long_text_is_written() -> None:
    turns = 0
    is_done = False

    async def count() -> None:
        nonlocal turns
        while not is_done:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    response = await rendered(Body(text="a" * (50 * PART_CHARACTERS)))
    is_done = True
    await counting
    _, parts = await sent(response)
    assert turns >= 49
    assert max(map(len, parts)) <= 2 * PART_CHARACTERS


def test_large_values_are_written_as_they_are_outside_of_a_response() -> None:
    body = Body(text="a" * 10_000, raw_value=RAW)  # type: ignore[arg-type]
    expected = {"text": "a" * 10_000, "rawValue": {"a": [1, "é"]}}
    assert body.model_dump(by_alias=True) == body.model_dump(by_alias=True, mode="json") == expected
    with holding() as held:
        body.model_dump_json()
    assert held == ["a" * 10_000, RAW]


@dataclass
class Row:
    text: str | None
    raw_value: dict[str, Any] | None = None


@pytest.mark.parametrize("count", [0, 1, 120])
async def test_page_is_written_as_its_model_writes_it(count: int) -> None:
    page = Page([Row("a" * 10_000 if number == 60 else "b") for number in range(count)], 121, 1, 120)
    headers, parts = await sent(await render(lambda: render_page(Body, page)))
    model = PaginatedResponse[Body].model_validate(page)
    assert b"".join(parts) == JSONResponse(model.model_dump(by_alias=True)).body
    assert headers == {"content-type": "application/json", "content-length": str(len(b"".join(parts)))}
