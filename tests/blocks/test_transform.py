"""`transform`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.transform import block


@pytest.mark.parametrize(
    ("output", "payload", "expected"),
    [
        ({"hello": "{{ payload.name }}", "n": "{{ payload.n }}"}, {"name": "Ada", "n": 1}, {"hello": "Ada", "n": 1}),
        ("{{ payload }}", [1, None], [1, None]),
        ("{{ payload.0 }}th", [4], "4th"),
        (None, "anything", None),
    ],
)
async def test_answers_with_the_filled_output(
    context: BlockContext, output: JsonValue, payload: JsonValue, expected: JsonValue
) -> None:
    config = block.config.model_validate({"output": output})
    assert await block.handler(block.payload.model_validate(payload), config, context) == expected


async def test_a_message_without_the_value_is_an_error(context: BlockContext) -> None:
    config = block.config.model_validate({"output": "{{ payload.name }}"})
    with pytest.raises(BlockError, match=r"no payload\.name") as caught:
        await block.handler(block.payload.model_validate({}), config, context)
    assert caught.value.code == "template_missing_value"


@pytest.mark.parametrize(
    "config", [{}, {"output": "{{ payload"}, {"output": ["{{ secrets.x }}"]}, {"output": 1, "more": 2}], ids=str
)
def test_configs_that_cannot_work_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
