"""`transform`."""

from __future__ import annotations

import re
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
async def test_output_template_is_rendered(
    context: BlockContext, output: JsonValue, payload: JsonValue, expected: JsonValue
) -> None:
    config = block.config.model_validate({"output": output})
    assert await block.handler(block.payload.model_validate(payload), config, context) == expected


async def test_missing_value_for_the_output_is_an_error(context: BlockContext) -> None:
    config = block.config.model_validate({"output": "{{ payload.name }}"})
    with pytest.raises(BlockError, match=r"no payload\.name") as caught:
        await block.handler(block.payload.model_validate({}), config, context)
    assert (caught.value.code, caught.value.retryable) == ("template_missing_value", False)


ORDER: JsonValue = {
    "number": 7,
    "customer": {"name": "Ada", "city": None},
    "items": [{"name": "pen", "price": 2.5}, {"name": "book", "price": 12}],
}


async def answer(context: BlockContext, config: dict[str, Any], payload: JsonValue = ORDER) -> Any:
    return await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)


async def refused(context: BlockContext, config: dict[str, Any], payload: JsonValue = ORDER) -> BlockError:
    with pytest.raises(BlockError) as caught:
        await answer(context, config, payload)
    assert not caught.value.retryable
    return caught.value


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("payload.items.filter(item, item.price > 3).map(item, item.name)", ["book"]),
        (
            "{'total': sum(payload.items.map(item, item.price)), 'to': payload.customer.name}",
            {"total": 14.5, "to": "Ada"},
        ),
        ("payload.customer.city", None),
    ],
)
async def test_answer_is_the_value_of_the_expression(
    context: BlockContext, expression: str, expected: JsonValue
) -> None:
    assert await answer(context, {"expression": expression}) == expected


async def test_failing_expression_is_an_error(context: BlockContext) -> None:
    error = await refused(context, {"expression": "payload.nobody"})
    assert (error.code, error.message) == ("expression_failed", "payload.nobody: no such field: nobody")


async def test_mapping_moves_values_between_paths(context: BlockContext) -> None:
    mapping = {
        "order.id": "number",
        "order.to.name": "customer.name",
        "order.to.city": "customer.city",
        "first": "items.0.name",
        "given": ".",
    }
    assert await answer(context, {"mapping": mapping}) == {
        "order": {"id": 7, "to": {"name": "Ada", "city": None}},
        "first": "pen",
        "given": ORDER,
    }


async def test_missing_value_for_the_mapping_is_an_error_unless_skipped(
    context: BlockContext,
) -> None:
    mapping = {"a.b": "customer.phone", "name": "customer.name", "c": "items.2"}
    error = await refused(context, {"mapping": mapping})
    assert (error.code, error.message) == ("missing_value", "the message has no customer.phone")
    assert await answer(context, {"mapping": mapping, "skip_missing": True}) == {"name": "Ada"}


@pytest.mark.parametrize(
    ("config", "payload", "reason"),
    [
        ({"output": "{{ payload }}"}, ["a\0b"], "0 contains a NUL"),
        ({"mapping": {"a": "."}}, {"x": float("inf")}, r"a\.x is not a finite number"),
        ({"output": {"a": {"b": "{{ payload }}"}}}, "deep", "more than 64"),
    ],
)
async def test_answer_that_cannot_be_stored_is_an_error(
    context: BlockContext, config: dict[str, Any], payload: JsonValue, reason: str
) -> None:
    if payload == "deep":
        for _ in range(63):
            payload = [payload]
    error = await refused(context, config, payload)
    assert error.code == "invalid_answer"
    assert re.search(reason, error.message)


INVALID: dict[str, dict[str, Any]] = {
    "use exactly one of output, expression and mapping": {},
    "use exactly one of output, expression and mapping, not output and expression": {"output": None, "expression": "1"},
    "use exactly one of output, expression and mapping, not expression and mapping": {
        "expression": "1",
        "mapping": {"a": "b"},
    },
    "a {{ has no }}": {"output": "{{ payload"},
    "secrets is unknown": {"output": ["{{ secrets.x }}"]},
    "Extra inputs": {"output": 1, "more": 2},
    "total is not defined": {"expression": "total > 3"},
    "there is no function siz; did you mean size?": {"expression": "siz(payload)"},
    "unexpected end": {"expression": "payload +"},
    "must have 1 to 500 paths": {"mapping": {}},
    "'a..b' is not a path": {"mapping": {"a..b": "c"}},
    "'' is not a path": {"mapping": {"a": ""}},
    "'.' is not a path": {"mapping": {".": "a"}},
    "'items[0].name' is not a path like user.name; write items.0.name": {"mapping": {"a": "items[0].name"}},
    "write user.name": {"mapping": {"a": "user['name']"}},
    "'{{ payload.a }}' is not a path": {"mapping": {"a": "{{ payload.a }}"}},
    "a.b is part of a, which": {"mapping": {"a.b": "x", "a": "y"}},
    "a path must have at most 64": {"mapping": {".".join("x" * 65): "y"}},
    "skip_missing has no effect without mapping": {"output": 1, "skip_missing": True},
}


def test_problems_of_members_and_of_the_config_are_reported_together() -> None:
    with pytest.raises(ValidationError) as caught:
        block.config.model_validate({"expression": "payload +", "mapping": {"a": "b[0]"}, "more": 1})
    found = sorted((error["loc"], error["msg"]) for error in caught.value.errors())
    assert [location for location, _ in found] == [(), ("expression",), ("mapping",), ("more",)]
    assert found[0][1] == "use exactly one of output, expression and mapping, not expression and mapping"


@pytest.mark.parametrize(("reason", "config"), INVALID.items(), ids=INVALID)
def test_invalid_transform_configs_are_rejected(reason: str, config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=re.escape(reason)):
        block.config.model_validate(config)


def test_null_mode_counts_as_absent() -> None:
    config = block.config.model_validate({"mapping": None, "expression": "payload", "skip_missing": False})
    assert config.expression == "payload"
