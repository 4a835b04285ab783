"""`text.template`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.text_template import block


async def answer(context: BlockContext, template: str, payload: JsonValue) -> Any:
    config = block.config.model_validate({"template": template})
    return await block.handler(block.payload.model_validate(payload), config, context)


@pytest.mark.parametrize(
    ("template", "payload", "text"),
    [
        ("Dear {{ payload.name }},\nthanks!", {"name": "Ada"}, "Dear Ada,\nthanks!"),
        ("{{ payload.n }} of {{ payload.all }}", {"n": 1, "all": [2.5, None, True]}, "1 of [2.5,null,true]"),
        ("{{ payload }}", {"a": "é"}, '{"a":"é"}'),
        ("{{ payload }}", 7, "7"),
        ("plain", None, "plain"),
        ("", None, ""),
        ("{{ payload }}", "{{ payload }}", "{{ payload }}"),
    ],
)
async def test_template_becomes_text(context: BlockContext, template: str, payload: JsonValue, text: str) -> None:
    assert await answer(context, template, payload) == {"text": text}


@pytest.mark.parametrize(
    ("template", "payload", "code"),
    [
        ("Dear {{ payload.name }}", {}, "template_missing_value"),
        ("{{ payload }}{{ payload }}", "x" * 600_000, "template_too_large"),
        ("a {{ payload }}", "\0", "invalid_answer"),
        ("{{ payload }}", float("nan"), "template_invalid_value"),
    ],
)
async def test_text_that_cannot_be_stored_is_an_error(
    context: BlockContext, template: str, payload: JsonValue, code: str
) -> None:
    with pytest.raises(BlockError) as caught:
        await answer(context, template, payload)
    assert (caught.value.code, caught.value.retryable) == (code, False)


@pytest.mark.parametrize("config", [{}, {"template": 1}, {"template": "{{ payload"}, {"template": "{{ secrets.KEY }}"}])
def test_invalid_text_template_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
