"""`echo` and the greeter."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from bloxserver.blocks import echo, greeting
from bloxserver.blocks.base import BlockContext, NoConfig


@pytest.mark.parametrize("payload", [None, True, 0, "text", [1, [2]], {"a": {"b": None}}], ids=repr)
async def test_echo_answers_with_its_payload(context: BlockContext, payload: JsonValue) -> None:
    block = echo.block
    assert await block.handler(block.payload.model_validate(payload), NoConfig(), context) == payload


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        ({"name": "Ada"}, "Ada"),
        ({"name": "  Ada  "}, "Ada"),
        ({"name": "Ada", "text": "other", "more": 1}, "Ada"),
        ({"name": "", "text": "Grace"}, "Grace"),
        ({"name": 7, "text": "Grace"}, "Grace"),
        ({"text": "Grace"}, "Grace"),
        ("Grace", "Grace"),
        ({}, "World"),
        ({"text": "  "}, "World"),
        (None, "World"),
        ([1], "World"),
        (5, "World"),
    ],
    ids=repr,
)
async def test_greeting_uses_name_text_or_world(context: BlockContext, payload: JsonValue, name: str) -> None:
    block = greeting.block
    answer = await block.handler(block.payload.model_validate(payload), NoConfig(), context)
    assert answer == {"message": f"Hello, {name}!"}
