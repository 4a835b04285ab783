"""`calculate`: evaluates an arithmetic expression like a calculator."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    RootModel,
    ValidationError,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bloxserver.blocks.base import CHECKED, Block, BlockConfig, BlockContext, BlockError, JsonSchema
from bloxserver.blocks.cel import type_check
from bloxserver.blocks.cel.function import NUMBER, Function
from bloxserver.blocks.cel.functions import FUNCTIONS
from bloxserver.blocks.cel.syntax import KEYWORDS, NAME
from bloxserver.blocks.cel.values import EvaluationError, Run, bounded, power
from bloxserver.blocks.expressions import Language, compile_expression, evaluate
from bloxserver.blocks.shapes import object_shape
from bloxserver.blocks.tools import any_schema

MAX_VARIABLES = 100
MAX_EXACT_INT = 2**53
DIGITS = 15
CONSTANTS: dict[str, JsonValue] = {"pi": math.pi, "e": math.e}


def _real_function(calculate: Callable[..., float]) -> Callable[..., float]:
    """Wrap a function of numbers that is undefined for some arguments."""

    def calculated(run: Run, *numbers: float) -> float:
        try:
            return float(bounded(calculate(*numbers), run))
        except (ValueError, OverflowError, ZeroDivisionError):
            given = ", ".join(f"{number:g}" for number in numbers)
            raise EvaluationError(f"the result for {given} is undefined or out of range") from None

    return calculated


CALCULATIONS: dict[str, Function] = FUNCTIONS | {
    **{name: FUNCTIONS[f"math.{name}"] for name in ("abs", "ceil", "floor", "round", "sign", "sqrt", "trunc")},
    "pow": Function(lambda run, base, exponent: power(base, exponent, run), (NUMBER, NUMBER)),
    "exp": Function(_real_function(math.exp), (NUMBER,)),
    "log": Function(_real_function(math.log), (NUMBER, NUMBER), optional=1),
    "ln": Function(_real_function(math.log), (NUMBER,)),
    "log2": Function(_real_function(math.log2), (NUMBER,)),
    "log10": Function(_real_function(math.log10), (NUMBER,)),
    **{
        name: Function(_real_function(getattr(math, name)), (NUMBER,))
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "degrees", "radians")
    },
    "hypot": Function(_real_function(math.hypot), (NUMBER, NUMBER)),
}


DOCUMENTED_FUNCTIONS = (
    *("abs", "ceil", "floor", "round(x, digits)", "trunc", "sqrt", "pow", "exp", "ln", "log10", "sin", "cos", "tan"),
    *("min", "max", "sum(list)"),
)


class Calculation(BaseModel):
    """A calculation in a message."""

    expression: str = Field(
        description="An expression like `2 * (3 + 4)`, with + - * / // % ** and parentheses, comparisons, a ? b : c, "
        f"pi, e, and the functions {', '.join(DOCUMENTED_FUNCTIONS)}."
    )
    variables: dict[str, JsonValue] = Field(
        default_factory=dict, max_length=MAX_VARIABLES, description="The values of the variables in the expression."
    )


class CalculatePayload(RootModel[JsonValue]):
    """The calculation, or the values for the config's expression."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read this schema. For them the payload is a calculation, although any JSON is accepted.
        return handler.resolve_ref_schema(handler(Calculation.__pydantic_core_schema__))


CALCULATION = Language("calculation", CALCULATIONS, is_arithmetic=True)
PAYLOAD = frozenset({"payload", *CONSTANTS})


def _checked(text: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        type_check.check(compile_expression(text, PAYLOAD, CALCULATION).program, real=True)
    return text


class CalculateConfig(BlockConfig):
    expression: Annotated[str, AfterValidator(_checked)] | None = Field(
        None,
        description="An expression over `payload`, like `payload.price * payload.count * 1.19`. "
        "Null: the message has the `expression` and its `variables`.",
    )


async def handle_calculate(payload: CalculatePayload, config: CalculateConfig, context: BlockContext) -> JsonValue:
    scope: dict[str, JsonValue]
    if config.expression is not None:
        text, scope = config.expression, {"payload": payload.root}
    else:
        text, scope = _calculation(payload.root)
    names = frozenset({*CONSTANTS, *scope})
    result = evaluate(text, {**CONSTANTS, **scope}, context.budget, names, CALCULATION)
    return {"result": _rounded(result)}


def _calculation(payload: JsonValue) -> tuple[str, dict[str, JsonValue]]:
    """Return the expression and the variables of a message."""
    given, variables = payload, dict[str, JsonValue]()
    if isinstance(payload, dict):
        given = {name: payload[name] for name in Calculation.model_fields if name in payload}
        if isinstance(values := payload.get("variables"), dict):
            variables = values
            # The values are not validated: they are JSON already, and can be large.
            given["variables"] = dict.fromkeys(islice(values, MAX_VARIABLES + 1))
    try:
        calculation = Calculation.model_validate(given)
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in reason["loc"])[:100] or "message"
        raise BlockError(
            "invalid_payload", f"the message is not a calculation: {where}: {reason['msg']}", retryable=False
        ) from None
    for name in variables:
        if not NAME.fullmatch(name) or name in KEYWORDS or name == "in":
            message = f"{name[:100]!r} is not a valid name for a variable; use letters, digits and _"
            raise BlockError("invalid_payload", message, retryable=False)
    return calculation.expression, variables


def _rounded(result: JsonValue) -> JsonValue:
    """Round a number to 15 digits, as a calculator does: 0.1 + 0.2 is 0.3, and 6 / 2 is 3."""
    if not isinstance(result, float):
        return result
    rounded = float(f"{result:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < MAX_EXACT_INT else rounded


def _input_schema(config: CalculateConfig) -> JsonSchema | None:
    return None if config.expression is None else any_schema("The values for the expression: any JSON value.")


block = Block(
    name="calculate",
    description="Evaluates an expression like 2 * (3 + 4) like a calculator: 1 / 2 is 0.5, 6 / 2 is 3.",
    payload=CalculatePayload,
    config=CalculateConfig,
    answer_shape=lambda config, message: object_shape("result"),
    handler=handle_calculate,
    aliases=("xml_pipeline.tools.calculate.handle_*",),
    input_schema=_input_schema,
    example={"config": {}, "payload": {"expression": "price * (1 + tax)", "variables": {"price": 20, "tax": 0.19}}},
)
