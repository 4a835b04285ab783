"""`delay`: answers with its message after a delay."""

from datetime import timedelta

from pydantic import Field, JsonValue, RootModel

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, Wait, message_as_answer

MAX_SECONDS = 30 * 24 * 60 * 60


class DelayPayload(RootModel[JsonValue]):
    """Any JSON value."""


class DelayConfig(BlockConfig):
    seconds: float = Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True, description="The delay in seconds.")


async def handle_delay(payload: DelayPayload, config: DelayConfig, context: BlockContext) -> Wait:
    return Wait(until=context.clock() + timedelta(seconds=config.seconds), answer=payload.root)


block = Block(
    name="delay",
    description="Answers with its message after a delay of up to 30 days.",
    payload=DelayPayload,
    config=DelayConfig,
    answer_shape=message_as_answer,
    handler=handle_delay,
    example={"config": {"seconds": 60}, "payload": {"any": "value"}},
)
