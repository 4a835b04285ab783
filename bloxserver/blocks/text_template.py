"""`text.template`: answers with a text that contains values of the message."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, RootModel, ValidationInfo

from bloxserver.blocks import templates
from bloxserver.blocks.base import CHECKED, Block, BlockConfig, BlockContext
from bloxserver.blocks.json_values import answer
from bloxserver.blocks.shapes import object_shape


class TextTemplatePayload(RootModel[JsonValue]):
    """Any JSON value."""


def _checked(template: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        templates.check(template)
    return template


class TextTemplateConfig(BlockConfig):
    template: Annotated[str, AfterValidator(_checked)] = Field(
        description="The text. `{{ payload.path.to.value }}` is replaced; a value that is not text becomes JSON."
    )


async def handle_text_template(
    payload: TextTemplatePayload, config: TextTemplateConfig, context: BlockContext
) -> JsonValue:
    text = templates.render_text(config.template, context.scope(payload.root), context.budget)
    return answer({"text": text}, context.budget)


block = Block(
    name="text.template",
    description="Answers with a text that contains values of the message.",
    payload=TextTemplatePayload,
    config=TextTemplateConfig,
    answer_shape=lambda config, message: object_shape("text"),
    handler=handle_text_template,
    rendered=frozenset({"template"}),
    example={
        "config": {"template": "Dear {{ payload.customer.name }},\nyour order {{ payload.number }} is on its way."},
        "payload": {"customer": {"name": "Ada"}, "number": 17},
    },
)
