"""`calculate`: works out an expression as a calculator does."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, GetJsonSchemaHandler, JsonValue, RootModel, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError, JsonSchema
from bloxserver.blocks.cel import kinds
from bloxserver.blocks.cel.functions import FUNCTIONS, NUMBER, Function
from bloxserver.blocks.cel.syntax import KEYWORDS, NAME, parse
from bloxserver.blocks.cel.values import Failure, Run, fitting, power
from bloxserver.blocks.expressions import Expression
from bloxserver.blocks.tools import anything

MAX_VARIABLES = 100
MAX_EXACT_INT = 2**53
DIGITS = 15
CONSTANTS: dict[str, JsonValue] = {"pi": math.pi, "e": math.e}


def _real(calculate: Callable[..., float]) -> Callable[..., float]:
    """A function of numbers that has no value for some."""

    def calculated(run: Run, *numbers: float) -> float:
        try:
            return float(fitting(calculate(*numbers), run))
        except (ValueError, OverflowError, ZeroDivisionError):
            given = ", ".join(f"{number:g}" for number in numbers)
            raise Failure(f"there is no value that can be written down for {given}") from None

    return calculated


CALCULATIONS: dict[str, Function] = FUNCTIONS | {
    **{name: FUNCTIONS[f"math.{name}"] for name in ("abs", "ceil", "floor", "round", "sign", "sqrt", "trunc")},
    "pow": Function(lambda run, base, exponent: power(base, exponent, run), (NUMBER, NUMBER)),
    "exp": Function(_real(math.exp), (NUMBER,)),
    "log": Function(_real(math.log), (NUMBER, NUMBER), optional=1),
    "ln": Function(_real(math.log), (NUMBER,)),
    "log2": Function(_real(math.log2), (NUMBER,)),
    "log10": Function(_real(math.log10), (NUMBER,)),
    **{
        name: Function(_real(getattr(math, name)), (NUMBER,))
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "degrees", "radians")
    },
    "hypot": Function(_real(math.hypot), (NUMBER, NUMBER)),
}


TOLD = (
    *("abs", "ceil", "floor", "round(x, digits)", "trunc", "sqrt", "pow", "exp", "ln", "log10", "sin", "cos", "tan"),
    *("min", "max", "sum(list)"),
)


class Calculation(BaseModel):
    """An expression as a message gives it."""

    expression: str = Field(
        description="Like `2 * (3 + 4)`. There are + - * / // % ** and parentheses, comparisons, a ? b : c, pi, e, "
        f"and the functions {', '.join(TOLD)}."
    )
    variables: dict[str, JsonValue] = Field(
        default_factory=dict, max_length=MAX_VARIABLES, description="Values that the expression names."
    )


class CalculatePayload(RootModel[JsonValue]):
    """The expression, or what the config's expression is about."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Agents read it to know what to send: for them it is the calculation, although any JSON is taken.
        return handler.resolve_ref_schema(handler(Calculation.__pydantic_core_schema__))


@lru_cache(maxsize=256)
def _compiled(text: str, names: frozenset[str]) -> Expression:
    return Expression(text, parse(text, names | CONSTANTS.keys(), CALCULATIONS, arithmetic=True), real=True)


def _checked(text: str) -> str:
    kinds.check(_compiled(text, frozenset({"payload"})).program, real=True)
    return text


class CalculateConfig(BlockConfig):
    expression: Annotated[str, AfterValidator(_checked)] | None = Field(
        None,
        description="An expression over `payload`, like `payload.price * payload.count * 1.19`; "
        "null: the message gives the `expression`, and `variables` for it.",
    )


async def handle_calculate(payload: CalculatePayload, config: CalculateConfig, context: BlockContext) -> JsonValue:
    scope: dict[str, JsonValue]
    if config.expression is not None:
        text, scope = config.expression, {"payload": payload.root}
    else:
        calculation = _calculation(payload.root)
        text, scope = calculation.expression, calculation.variables
    try:
        expression = _compiled(text, frozenset(scope))
    except ValueError as error:
        raise BlockError("expression_failed", f"{text[:200]}: {error}", retryable=False) from None
    return {"result": _shown(expression.evaluate({**CONSTANTS, **scope}))}


def _calculation(payload: JsonValue) -> Calculation:
    try:
        calculation = Calculation.model_validate(payload)
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in reason["loc"])[:100] or "message"
        raise BlockError(
            "invalid_payload", f"nothing to calculate: {where}: {reason['msg']}", retryable=False
        ) from None
    for name in calculation.variables:
        if not NAME.fullmatch(name) or name in KEYWORDS or name == "in":
            message = f"{name[:100]!r} cannot be the name of a variable: letters, digits and _"
            raise BlockError("invalid_payload", message, retryable=False)
    return calculation


def _shown(result: JsonValue) -> JsonValue:
    """As a calculator shows a number: 0.1 + 0.2 is 0.3, and a whole number has no fraction."""
    if not isinstance(result, float):
        return result
    rounded = float(f"{result:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < MAX_EXACT_INT else rounded


def _left(config: CalculateConfig) -> JsonSchema | None:
    return None if config.expression is None else anything("What the expression is about: any JSON value.")


block = Block(
    name="calculate",
    description="Works out an expression like 2 * (3 + 4) as a calculator does: 1 / 2 is 0.5, 6 / 2 is 3.",
    payload=CalculatePayload,
    config=CalculateConfig,
    handler=handle_calculate,
    aliases=("xml_pipeline.tools.calculate.handle_*",),
    left=_left,
    example={"config": {}, "payload": {"expression": "price * (1 + tax)", "variables": {"price": 20, "tax": 0.19}}},
)
