"""`stop`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError, Stop, StopError
from bloxserver.blocks.stop import MAX_ERROR_CHARACTERS, block


async def stopped(context: BlockContext, config: dict[str, Any], payload: JsonValue) -> Stop:
    answer = await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)
    assert isinstance(answer, Stop)
    return answer


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Stop({"number": 17})),
        ({"output": None}, Stop(None)),
        ({"output": {"order": "{{ payload.number }}"}}, Stop({"order": 17})),
        ({"error": "No {{ payload.number }}"}, Stop(None, StopError("stopped", "No 17"))),
        ({"error": "{{ payload.number }}", "code": "not_paid"}, Stop(None, StopError("not_paid", "17"))),
    ],
)
async def test_output_is_the_message_or_a_template_and_errors_are_texts(
    context: BlockContext, config: dict[str, Any], expected: Stop
) -> None:
    assert await stopped(context, config, {"number": 17}) == expected


async def test_long_errors_are_cut(context: BlockContext) -> None:
    error = (await stopped(context, {"error": "{{ payload }}"}, "x" * 10_000)).error
    assert error == StopError("stopped", "x" * MAX_ERROR_CHARACTERS)


async def test_missing_value_is_an_error_of_the_step(context: BlockContext) -> None:
    with pytest.raises(BlockError) as caught:
        await stopped(context, {"error": "{{ payload.missing }}"}, {})
    assert caught.value.code == "template_missing_value"


@pytest.mark.parametrize(
    "config",
    [
        {"output": 1, "error": "x"},
        {"error": ""},
        {"code": "x"},
        {"error": "x", "code": "Not snake"},
        {"error": "{{ payload."},
        {"error": 3},
    ],
)
def test_invalid_config(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
