"""`json.format`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.json_format import block


async def answer(context: BlockContext, payload: JsonValue, config: dict[str, Any] | None = None) -> Any:
    config_model = block.config.model_validate(config or {})
    return await block.handler(block.payload.model_construct(payload), config_model, context)


@pytest.mark.parametrize(
    ("payload", "config", "text"),
    [
        ({"b": [1, 2.5], "a": "é"}, {}, '{"b":[1,2.5],"a":"é"}'),
        ({"b": {"d": 1, "c": 2}, "a": 3}, {"sort_keys": True}, '{"a":3,"b":{"c":2,"d":1}}'),
        ({"a": [1]}, {"indent": 2}, '{\n  "a": [\n    1\n  ]\n}'),
        ([1], {"indent": 0}, "[\n1\n]"),
        (None, {}, "null"),
        ('say "hi"\n', {}, '"say \\"hi\\"\\n"'),
    ],
)
async def test_message_is_written_as_json_text(
    context: BlockContext, payload: JsonValue, config: dict[str, Any], text: str
) -> None:
    assert await answer(context, payload, config) == {"text": text}


@pytest.mark.parametrize("payload", [[float("nan")], {"a": float("inf")}, "\0", ["\ud800"], 10**400], ids=ascii)
async def test_value_that_is_no_json_is_an_error(context: BlockContext, payload: JsonValue) -> None:
    with pytest.raises(BlockError) as caught:
        await answer(context, payload)
    assert (caught.value.code, caught.value.retryable) == ("invalid_answer", False)


async def test_too_large_text_is_an_error(context: BlockContext) -> None:
    deep: JsonValue = [1] * 20_000
    for _ in range(60):
        deep = [deep]
    assert len((await answer(context, deep))["text"]) < 50_000
    with pytest.raises(BlockError, match="larger than"):
        await answer(context, deep, {"indent": 8})


@pytest.mark.parametrize("config", [{"indent": 9}, {"indent": -1}, {"indent": "\t"}, {"sort_keys": 7}], ids=str)
def test_invalid_json_format_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
