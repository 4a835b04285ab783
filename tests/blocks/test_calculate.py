"""`calculate`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.calculate import CALCULATIONS, DOCUMENTED_FUNCTIONS, block
from bloxserver.blocks.cel.values import CostLimitExceeded

RESULTS: dict[str, Any] = {
    "2 * (3 + 4)": 14,
    "1 / 2": 0.5,
    "6 / 2": 3,
    "1 / 3 * 3": 1,
    "0.1 + 0.2": 0.3,
    "20 * 1.19": 23.8,
    "10 // 3": 3,
    "-7 // 2": -4,
    "17 % 5": 2,
    "7.5 % 2": 1.5,
    "2 ** 10": 1024,
    "2^10": 1024,
    "-2 ** 2": -4,
    "2 ** -1": 0.5,
    "2 ** 3 ** 2": 512,
    "2 ** 0.5 * 2 ** 0.5": 2,
    "9007199254740993 + 1": 9007199254740994,
    "9223372036854775807 + 1": 9.22337203685478e18,
    "2 ** 100": 1.26765060022823e30,
    "1e3": 1000,
    "pi": 3.14159265358979,
    "sin(pi / 2) + cos(0)": 2,
    "ln(e)": 1,
    "log(8, 2) + log10(1000) + log2(4)": 8,
    "sqrt(16) + abs(-3)": 7,
    "round(2.675, 2)": 2.68,
    "round(-2.5)": -3,
    "round(10 / 3, 4)": 3.3333,
    "floor(-1.5) + ceil(1.2) + trunc(1.9)": 1,
    "max(1, 2.5, 2) + min([4, 3])": 5.5,
    "sum([1, 2.5])": 3.5,
    "pow(2, 3) + hypot(3, 4) + exp(0)": 14,
    "degrees(pi)": 180,
    "5 > 3": True,
    "5 > 3 ? 10 : 20": 10,
    "'a' + 'b'": "ab",
    "[1, 2].map(x, x / 2)": [0.5, 1.0],
}
WITHOUT_RESULT = {
    "": "empty",
    "2 +": "unexpected end",
    "2 x 3": "unexpected x",
    "1,000": "unexpected ,",
    "price * 2": "price is not defined; defined are e, pi",
    "__import__('os').system('x')": "there is no function __import__",
    "(1).__class__": "no such field: __class__",
    "factorial(5)": "there is no function factorial",
    "1 / 0": "division by zero",
    "1 // 0": "division by zero",
    "sqrt(-1)": "not negative",
    "(-8) ** (1 / 3)": "not a real number",
    "0 ** -1": "undefined or out of range",
    "9 ** 9 ** 9 ** 9": "undefined or out of range",
    "2 ** 1000000": "undefined or out of range",
    "1e308 * 10": "too large",
    "log(0)": "undefined or out of range",
    "log(8, 1)": "undefined or out of range",
    "exp(1000)": "undefined or out of range",
    "round(1, 100)": "0 to 15 digits",
    "9" * 400: "too large",
    "2**" * 600 + "2": "levels deep",
    "(" * 600 + "2" + ")" * 600: "levels deep",
}


async def answer(context: BlockContext, payload: JsonValue, config: dict[str, Any] | None = None) -> Any:
    config_model = block.config.model_validate(config or {})
    return await block.handler(block.payload.model_validate(payload), config_model, context)


async def refused(context: BlockContext, payload: JsonValue, config: dict[str, Any] | None = None) -> BlockError:
    with pytest.raises(BlockError) as caught:
        await answer(context, payload, config)
    assert not caught.value.retryable
    return caught.value


@pytest.mark.parametrize(("expression", "result"), RESULTS.items())
async def test_expression_of_the_message_is_evaluated(
    context: BlockContext, expression: str, result: JsonValue
) -> None:
    answered = await answer(context, {"expression": expression})
    assert answered == {"result": result}
    assert type(answered["result"]) is type(result)


@pytest.mark.parametrize(("expression", "reason"), WITHOUT_RESULT.items(), ids=lambda text: text[:40])
async def test_expression_without_result_fails_with_a_reason(
    context: BlockContext, expression: str, reason: str
) -> None:
    error = await refused(context, {"expression": expression})
    assert error.code == "expression_failed"
    assert reason in error.message
    assert len(error.message) < 500


async def test_expression_uses_variables_of_the_message(context: BlockContext) -> None:
    variables: JsonValue = {"price": 20, "tax": 0.19, "rows": [{"n": 2}, {"n": 3}], "e": 1}
    payload: JsonValue = {"expression": "price * (1 + tax) * sum(rows.map(row, row.n)) + e", "variables": variables}
    assert await answer(context, payload) == {"result": 120}


async def test_expression_of_the_config_is_evaluated_over_the_payload(context: BlockContext) -> None:
    config = {"expression": "payload.price * payload.count / size(payload.people)"}
    payload: JsonValue = {"price": 2.5, "count": 3, "people": ["a", "b"], "expression": "1"}
    assert await answer(context, payload, config) == {"result": 3.75}
    assert (await refused(context, {}, config)).message.endswith("no such field: price")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("2 * 3", "message: "),
        ({}, "expression: Field required"),
        ({"expression": 7}, "expression: "),
        ({"expression": "1", "variables": [1]}, "variables: "),
        ({"expression": "1", "variables": {"a b": 1}}, "'a b' is not a valid name for a variable"),
        ({"expression": "1", "variables": {"true": 1}}, "'true' is not a valid name for a variable"),
        ({"expression": "1", "variables": {"in": 1}}, "'in' is not a valid name for a variable"),
        ({"expression": "1", "variables": {str(n): n for n in range(101)}}, "variables: "),
    ],
)
async def test_message_that_is_no_calculation_is_rejected(
    context: BlockContext, payload: JsonValue, reason: str
) -> None:
    error = await refused(context, payload)
    assert error.code == "invalid_payload"
    assert reason in error.message


async def test_expensive_calculation_exceeds_the_cost_limit(context: BlockContext) -> None:
    numbers: JsonValue = list(range(5000))
    payload: JsonValue = {"expression": "sum(n.map(a, sum(n.map(b, a * b))))", "variables": {"n": numbers}}
    with pytest.raises(CostLimitExceeded):
        await answer(context, payload)


@pytest.mark.parametrize("expression", ["price * 2", "payload.price *", "payload.price ** "])
def test_invalid_calculate_configs_are_rejected(expression: str) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate({"expression": expression})


def test_calculate_payload_schema_describes_a_calculation() -> None:
    schema = block.payload.model_json_schema()
    assert schema["required"] == ["expression"]
    assert set(schema["properties"]) == {"expression", "variables"}


def test_documented_functions_exist() -> None:
    assert {name.partition("(")[0] for name in DOCUMENTED_FUNCTIONS} <= CALCULATIONS.keys()
    assert all(
        name in block.payload.model_json_schema()["properties"]["expression"]["description"]
        for name in DOCUMENTED_FUNCTIONS
    )
