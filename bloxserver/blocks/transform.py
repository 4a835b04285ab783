"""`transform`: answers with a value that its config describes, filled from the message."""

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, RootModel

from bloxserver.blocks import templates
from bloxserver.blocks.base import Block, BlockConfig, BlockContext


class TransformPayload(RootModel[JsonValue]):
    """Any JSON value."""


def _checked(template: JsonValue) -> JsonValue:
    templates.check(template)
    return template


class TransformConfig(BlockConfig):
    output: Annotated[JsonValue, AfterValidator(_checked)] = Field(
        description="Any JSON; `{{ payload.path.to.value }}` in its texts is replaced."
    )


async def handle_transform(payload: TransformPayload, config: TransformConfig, context: BlockContext) -> JsonValue:
    return templates.render(config.output, {"payload": payload.root})


block = Block(
    name="transform",
    description="Answers with a value put together from the message.",
    payload=TransformPayload,
    config=TransformConfig,
    handler=handle_transform,
    example={
        "config": {"output": {"greeting": "Hello, {{ payload.user.name }}!", "first": "{{ payload.items.0 }}"}},
        "payload": {"user": {"name": "Ada"}, "items": [1, 2]},
    },
)
