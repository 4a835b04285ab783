"""`transform`: computes a value from the message with a template, a CEL expression or a mapping of paths."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    RootModel,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from bloxserver.blocks import templates
from bloxserver.blocks.base import CHECKED, Block, BlockConfig, BlockContext, BlockError, JsonSchema, with_problem
from bloxserver.blocks.cel.values import Budget
from bloxserver.blocks.expressions import ExpressionText, compile_expression, evaluate
from bloxserver.blocks.json_values import MAX_DEPTH, answer, value_at
from bloxserver.blocks.shapes import Shape, shape_of_expression, shape_of_template
from bloxserver.blocks.tools import schema_of_paths

MAX_PATHS = 500
STEPS_PER_PATH = 8
WHOLE_MESSAGE = "."
MODES = ("output", "expression", "mapping")


class TransformPayload(RootModel[JsonValue]):
    """Any JSON value."""


def _checked_template(template: JsonValue, info: ValidationInfo) -> JsonValue:
    if info.context != CHECKED:
        templates.check(template)
    return template


def _checked_mapping(mapping: dict[str, str]) -> dict[str, str]:
    if not 0 < len(mapping) <= MAX_PATHS:
        raise ValueError(f"must have 1 to {MAX_PATHS} paths")
    targets = {_path(target) for target in mapping}
    for source in mapping.values():
        if source != WHOLE_MESSAGE:
            templates.check_path(source)
    for target in targets:
        if len(target) > MAX_DEPTH:
            raise ValueError(f"a path must have at most {MAX_DEPTH} names")
        for length in range(1, len(target)):
            if target[:length] in targets:
                inner, outer = ".".join(target)[:100], ".".join(target[:length])[:100]
                raise ValueError(f"{inner} is part of {outer}, which also has a value")
    return mapping


def _path(path: str) -> tuple[str, ...]:
    names = tuple(path.split("."))
    if not all(names):
        raise ValueError(f"{path[:100]!r} is not a path like user.name; separate names with dots")
    return names


class TransformConfig(BlockConfig):
    """One of `output`, `expression` and `mapping`."""

    output: Annotated[JsonValue, AfterValidator(_checked_template)] = Field(
        None, description="The answer: any JSON value. `{{ payload.path.to.value }}` is replaced in its texts."
    )
    expression: ExpressionText | None = Field(
        None,
        description="A CEL expression that computes the answer, like `payload.items.filter(item, item.price > 3)`.",
    )
    mapping: Annotated[dict[str, str], AfterValidator(_checked_mapping)] | None = Field(
        None,
        description="For each path in the answer, like `customer.name`, the path of its value in the message; `.` is "
        "the whole message.",
    )
    skip_missing: bool = Field(False, description="With mapping: skip values that the message does not have.")

    @model_validator(mode="wrap")
    @classmethod
    def _check_mode(cls, config: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        problem = _mode_problem(config) if isinstance(config, dict) else None
        try:
            valid = read(config)
        except ValidationError as error:
            raise error if problem is None else with_problem(error, problem) from None
        if problem is not None:
            raise ValueError(problem)
        return valid


def _mode_problem(config: dict[str, Any]) -> str | None:
    # The output can be null. Null for another key is the same as no value.
    modes = [mode for mode in MODES if mode in config and (mode == "output" or config[mode] is not None)]
    if len(modes) != 1:
        given = f", not {' and '.join(modes)}" if modes else ""
        return f"use exactly one of output, expression and mapping{given}"
    if config.get("skip_missing") and modes != ["mapping"]:
        return "skip_missing has no effect without mapping"
    return None


async def handle_transform(payload: TransformPayload, config: TransformConfig, context: BlockContext) -> JsonValue:
    scope, budget = context.scope(payload.root), context.budget
    if config.expression is not None:
        return evaluate(config.expression, scope, budget)
    if config.mapping is not None:
        return answer(_mapped(config.mapping, payload.root, budget, skip_missing=config.skip_missing), budget)
    return answer(templates.render(config.output, scope, budget), budget)


def _mapped(mapping: dict[str, str], payload: JsonValue, budget: Budget, *, skip_missing: bool) -> JsonValue:
    mapped: dict[str, Any] = {}
    for target, source in mapping.items():
        budget.consume(STEPS_PER_PATH + len(target) + len(source))
        try:
            value = payload if source == WHOLE_MESSAGE else value_at(_path(source), payload)
        except LookupError:
            if skip_missing:
                continue
            raise BlockError("missing_value", f"the message has no {source[:200]}", retryable=False) from None
        *parents, name = _path(target)
        parent = mapped
        for step in parents:
            parent = parent.setdefault(step, {})
        parent[name] = value
    return mapped


def _input_schema(config: TransformConfig) -> JsonSchema | None:
    if config.mapping is None or config.skip_missing:
        return None
    return schema_of_paths(() if source == WHOLE_MESSAGE else _path(source) for source in config.mapping.values())


def _answer_shape(config: TransformConfig, message: Shape) -> Shape:
    if config.expression is not None:
        return shape_of_expression(compile_expression(config.expression).program)
    if config.mapping is not None:
        members: dict[str, Any] = {}
        for target in map(_path, config.mapping):
            parent = members
            for name in target[:-1]:
                parent = parent.setdefault(name, {})
            parent[target[-1]] = None
        return shape_of_template(members)
    return shape_of_template(config.output)


block = Block(
    name="transform",
    description="Computes a value from the message with a template, a CEL expression or a mapping of paths.",
    payload=TransformPayload,
    config=TransformConfig,
    handler=handle_transform,
    rendered=frozenset({"output"}),
    input_schema=_input_schema,
    answer_shape=_answer_shape,
    expressions=("expression",),
    example={
        "config": {"output": {"greeting": "Hello, {{ payload.user.name }}!", "first": "{{ payload.items.0 }}"}},
        "payload": {"user": {"name": "Ada"}, "items": [1, 2]},
    },
)
