"""`json.parse`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.json_parse import block

INVALID = {
    "": "line 1 column 0",
    "nothing": "line 1 column 2",
    '{"a": 1,}': "line 1 column 9",
    "{'a': 1}": "line 1 column 2",
    "[1,\n 2,\n x]": "line 3 column 2",
    "[1] 2": "line 1 column 5",
    "[NaN]": "line 1 column 2",
    "[-Infinity]": "line 1 column 3",
    '{"a": [1, 1e400]}': "a.1 is not a finite number",
    '"\\ud800"': "line 1 column 8",
    '{"a": {"b\\u0000": 1}}': "a contains a NUL",
    '{"a": ["\\u0000"]}': "a.0 contains a NUL",
    '"a\nb"': "line 2 column 0",
    "01": "line 1 column 2",
    "[123456789012345678901]": "0 is an integer of more than 64 bits",
    "9" * 5000: "out of range",
    "[" * 65 + "]" * 65: "more than 64",
    "[" * 1000 + "]" * 1000: "recursion limit",
    "[" * 1_000_000: "recursion limit",
    '{"a":' * 100_000: "recursion limit",
}


async def answer(context: BlockContext, payload: JsonValue, config: dict[str, Any] | None = None) -> Any:
    config_model = block.config.model_validate(config or {})
    return await block.handler(block.payload.model_validate(payload), config_model, context)


@pytest.mark.parametrize(
    ("payload", "config", "expected"),
    [
        ('{"a": [1, 2.5, null, true, "é\\n"]}', {}, {"a": [1, 2.5, None, True, "é\n"]}),
        ({"text": " 7 ", "other": 1}, {}, 7),
        ({"status": 200, "body": {"parts": ["x", "[1]"]}}, {"path": "body.parts.1"}, [1]),
        (["[2]"], {"path": "0"}, [2]),
        ('"\\ud83d\\ude00"', {}, "😀"),
        ("18446744073709551615", {}, 18446744073709551615),
        ('\ufeff{"name": "Ada"}', {}, {"name": "Ada"}),
        ({"text": '\ufeff"\ufeff"'}, {}, "\ufeff"),
        ('{"a": 1, "a": 2}', {}, {"a": 2}),
        ("[" * 64 + "]" * 64, {}, ...),
    ],
)
async def test_text_of_the_message_is_parsed(
    context: BlockContext, payload: JsonValue, config: dict[str, Any], expected: Any
) -> None:
    answered = await answer(context, payload, config)
    assert answered == expected or (expected is ... and isinstance(answered, list))


@pytest.mark.parametrize(("text", "reason"), INVALID.items(), ids=lambda text: ascii(text)[:30])
async def test_json_that_cannot_be_stored_is_rejected_with_its_path(
    context: BlockContext, text: str, reason: str
) -> None:
    with pytest.raises(BlockError) as caught:
        await answer(context, text)
    assert (caught.value.code, caught.value.retryable) == ("invalid_json", False)
    assert reason in caught.value.message
    assert len(caught.value.message) < 300


async def test_lone_surrogate_is_rejected(context: BlockContext) -> None:
    with pytest.raises(BlockError, match="at character 3") as caught:
        await answer(context, '"a\ud800"')
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("payload", "config", "code"),
    [
        ({}, {}, "missing_value"),
        ({"body": "{}"}, {"path": "body.text"}, "missing_value"),
        ({"text": {"a": 1}}, {}, "invalid_payload"),
        (7, {}, "invalid_payload"),
        (None, {"path": "a"}, "missing_value"),
    ],
)
async def test_message_without_text_is_rejected(
    context: BlockContext, payload: JsonValue, config: dict[str, Any], code: str
) -> None:
    with pytest.raises(BlockError) as caught:
        await answer(context, payload, config)
    assert (caught.value.code, caught.value.retryable) == (code, False)


async def test_large_text_is_parsed(context: BlockContext) -> None:
    text = "[" + ",".join(['{"id": 1, "name": "xxxxxxxx"}'] * 20_000) + "]"
    assert len(await answer(context, text)) == 20_000


@pytest.mark.parametrize(
    "config", [{"path": ""}, {"path": "a..b"}, {"path": "a[0]"}, {"path": 1}, {"strict": True}], ids=str
)
def test_invalid_json_parse_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)


def test_json_parse_payload_schema_is_an_object_with_text() -> None:
    schema = block.payload.model_json_schema()
    assert schema["required"] == ["text"]
