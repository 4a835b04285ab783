"""`stop`: ends the execution with an output or an error."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, JsonValue, RootModel, StringConstraints, model_validator

from bloxserver.blocks import templates
from bloxserver.blocks.base import Block, BlockConfig, BlockContext, Stop, StopError
from bloxserver.blocks.json_values import answer
from bloxserver.blocks.templated import TemplateText, TemplateValue

MAX_ERROR_CHARACTERS = 4_000
DEFAULT_CODE = "stopped"


class StopPayload(RootModel[JsonValue]):
    """Any JSON value."""


class StopConfig(BlockConfig):
    """At most one of `output` and `error`."""

    output: TemplateValue = Field(
        None,
        description="The output of the execution: any JSON value, with placeholders. Without it, the message is the "
        "output.",
    )
    error: TemplateText | None = Field(
        None, min_length=1, description="The message of the error with which the execution ends, with placeholders."
    )
    code: Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]{0,63}$")] | None = Field(
        None, description=f"The code of the error, in snake_case; the default is `{DEFAULT_CODE}`."
    )

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        if self.error is not None and "output" in self.model_fields_set:
            raise ValueError("use one of output and error")
        if self.error is None and self.code is not None:
            raise ValueError("code has no effect without error")
        return self


async def handle_stop(payload: StopPayload, config: StopConfig, context: BlockContext) -> Stop:
    scope, budget = context.scope(payload.root), context.budget
    if config.error is not None:
        message = templates.render_text(config.error, scope, budget)[:MAX_ERROR_CHARACTERS]
        return Stop(None, StopError(config.code or DEFAULT_CODE, message))
    if "output" not in config.model_fields_set:
        return Stop(payload.root)
    return Stop(answer(templates.render(config.output, scope, budget), budget))


block = Block(
    name="stop",
    description="Ends the execution at once, with an output or an error. Other branches are cancelled.",
    payload=StopPayload,
    config=StopConfig,
    handler=handle_stop,
    rendered=frozenset({"output", "error"}),
    example={
        "config": {"error": "The order {{ payload.number }} is not paid", "code": "not_paid"},
        "payload": {"number": 17},
    },
)
