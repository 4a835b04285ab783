"""`echo`: answers with its message."""

from pydantic import JsonValue, RootModel

from bloxserver.blocks.base import Block, BlockContext, NoConfig, message_as_answer


class EchoPayload(RootModel[JsonValue]):
    """Any JSON value."""


async def handle_echo(payload: EchoPayload, config: NoConfig, context: BlockContext) -> JsonValue:
    return payload.root


block = Block(
    name="echo",
    description="Answers with its message.",
    payload=EchoPayload,
    config=NoConfig,
    answer_shape=message_as_answer,
    handler=handle_echo,
    example={"config": {}, "payload": {"any": "value"}},
)
